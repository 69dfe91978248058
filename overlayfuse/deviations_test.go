package overlayfuse_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deviation matches a row of the table of deviations in doc.go by its first column, the name of the script that shows it.
var deviation = regexp.MustCompile(`(?m)^//\s*\|\s*(better_\w+)\s*\|`)

// TestDeviationsAreDocumented: the scripts in which the kernel's overlayfs and ours differ are the rows of the table in
// doc.go, and no other script tells them apart, unless the line above says why.
func TestDeviationsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range deviation.FindAllStringSubmatch(string(doc), -1) {
		documented = append(documented, row[1])
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		if strings.HasPrefix(name, "better_") {
			shown = append(shown, name)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s does not start with what it claims", name)
		}
		if !strings.HasPrefix(name, "better_") && strings.Contains(string(text), "[overlayfuse]") && !differsForAReason(string(text)) {
			t.Errorf("%s tells the systems apart, but is not named better_", name)
		}
	}
	slices.Sort(documented)
	slices.Sort(shown)
	if !slices.Equal(documented, shown) {
		t.Errorf("doc.go lists  %s\nthe scripts are %s", strings.Join(documented, " "), strings.Join(shown, " "))
	}
}

// differsForAReason: the first line for overlayfuse alone is one that a comment explains.
func differsForAReason(script string) bool {
	lines := strings.Split(script, "\n")
	first := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "[overlayfuse]") })
	return first > 1 && strings.HasPrefix(lines[first-1], "#")
}
