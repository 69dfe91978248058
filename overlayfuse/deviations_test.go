package overlayfuse_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deviation matches a row of the tables of deviations in doc.go by its first column, the name of the script that shows it.
var deviation = regexp.MustCompile(`(?m)^//\s*\|\s*((?:better|differs|writeback|sharing)_\w+)\s*\|`)

// TestDeviationsAreDocumented: the scripts in which the kernel's overlayfs and ours differ are the rows of the table in
// doc.go, and no other script tells them apart.
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
		differs := strings.HasPrefix(name, "better_") || strings.HasPrefix(name, "differs_")
		late := strings.HasPrefix(name, "writeback_")
		asked := strings.HasPrefix(name, "sharing_")
		if differs || late || asked {
			shown = append(shown, name)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s does not start with what it claims", name)
		}
		if !differs && !asked && strings.Contains(string(text), "[overlayfuse]") {
			t.Errorf("%s tells the systems apart, but is named neither better_, differs_ nor sharing_", name)
		}
		if !differs && strings.Contains(string(text), "io:writeback]") && !strings.Contains(string(text)+name, "writeback_") {
			t.Errorf("%s tells io=writeback apart, but neither is named nor names a script writeback_", name)
		}
	}
	slices.Sort(documented)
	slices.Sort(shown)
	if !slices.Equal(documented, shown) {
		t.Errorf("doc.go lists  %s\nthe scripts are %s", strings.Join(documented, " "), strings.Join(shown, " "))
	}
}
