package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The plot: a line for each row that has a ratio, its marks on a logarithmic axis of time against the kernel's.

const (
	plotLabel  = 520 // pixels for the text
	plotWidth  = 480 // of the axis
	plotNumber = 130 // of the ratio in figures
	plotLine   = 18
	plotTop    = 64
	plotLow    = 1.0 / 1024 // the axis's ends; marks beyond them are at them
	plotHigh   = 64.0
)

// plotColors of the marks, and of a bound that is missed.
var plotColors = map[system]string{ours: "#0b62a4", fuseOverlayfs: "#d9822b", plain: "#7a7a7a"}

const plotMissed = "#c0143c"

// plotLineOf is one row of the plot.
type plotLineOf struct {
	label  string
	ratios map[system]float64
	limit  float64 // against the kernel; 0 is none
	missed bool
}

func (r *report) plotLines() []plotLineOf {
	var lines []plotLineOf
	for _, s := range r.Sections {
		for _, row := range s.rows {
			m := s.medians(row)
			base, ok := m[kernel]
			if !ok || base.Value == 0 || base.Over || (row.unit != seconds && row.unit != bytesUnit) {
				continue
			}
			l := plotLineOf{label: s.Experiment + ": " + row.title, ratios: map[system]float64{}}
			for y, v := range m {
				if y != kernel && !v.Over {
					l.ratios[y] = v.Value / base.Value
				}
			}
			for _, b := range row.must {
				if b.against == kernel {
					l.limit = b.limit
				}
				l.missed = l.missed || b.judge(m) == missed
			}
			if _, ok := l.ratios[ours]; ok {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

// plotX is where a ratio is, in pixels.
func plotX(ratio float64) float64 {
	ratio = min(max(ratio, plotLow), plotHigh)
	return plotLabel + plotWidth*math.Log(ratio/plotLow)/math.Log(plotHigh/plotLow)
}

// svg is the plot, as a file of its own.
func (r *report) svg() string {
	lines := r.plotLines()
	width, height := plotLabel+plotWidth+plotNumber, plotTop+plotLine*len(lines)+24
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&w, `<text x="8" y="16" font-size="14" font-weight="bold">Cost relative to the kernel's overlayfs: left is cheaper</text>`+"\n")
	x := 8.0
	for _, y := range []system{ours, fuseOverlayfs, plain} {
		fmt.Fprintf(&w, `<circle cx="%g" cy="30" r="4" fill="%s"/><text x="%g" y="34">%s</text>`+"\n", x+4, plotColors[y], x+12, y)
		x += 110
	}
	fmt.Fprintf(&w, `<path d="M%g 24v12" stroke="%s" stroke-width="2"/><text x="%g" y="34">bound for ours, red if missed</text>`+"\n",
		x+4, "#2a8f4a", x+12)
	for power := int(math.Log2(plotLow)); power <= int(math.Log2(plotHigh)); power += 2 {
		at, color := plotX(math.Exp2(float64(power))), "#e4e4e4"
		if power == 0 {
			color = "#404040"
		}
		name := fmt.Sprint(1 << max(power, 0))
		if power < 0 {
			name = fmt.Sprintf("1/%d", 1<<-power)
		}
		fmt.Fprintf(&w, `<path d="M%.1f %dV%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			at, plotTop-6, height-18, color, at, plotTop-10, name)
	}
	for i, l := range lines {
		w.WriteString(l.svg(plotTop + plotLine*i + plotLine/2))
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// svg is one line, with its middle at y pixels.
func (l plotLineOf) svg(y int) string {
	var w strings.Builder
	color := "#202020"
	if l.missed {
		color = plotMissed
	}
	label := []rune(l.label)
	if len(label) > 90 {
		label = append(label[:89], '…')
	}
	fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="end" fill="%s">%s</text>`+"\n", plotLabel-8, y+4, color, html.EscapeString(string(label)))
	if l.limit != 0 {
		bar := "#2a8f4a"
		if l.missed {
			bar = plotMissed
		}
		fmt.Fprintf(&w, `<path d="M%.1f %dv14" stroke="%s" stroke-width="2"/>`+"\n", plotX(l.limit), y-7, bar)
	}
	mine := l.ratios[ours]
	fmt.Fprintf(&w, `<path d="M%.1f %dH%.1f" stroke="%s" stroke-width="3"/>`+"\n", plotX(1), y, plotX(mine), plotColors[ours])
	for _, system := range slices.Backward([]system{ours, fuseOverlayfs, plain}) {
		if ratio, ok := l.ratios[system]; ok {
			fmt.Fprintf(&w, `<circle cx="%.1f" cy="%d" r="4" fill="%s"/>`+"\n", plotX(ratio), y, plotColors[system])
		}
	}
	fmt.Fprintf(&w, `<text x="%d" y="%d" fill="%s">× %s</text>`+"\n", plotLabel+plotWidth+16, y+4, color, digits(mine))
	return w.String()
}
