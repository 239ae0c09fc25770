package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
)

// made is a log of 12 records in several files, and its newest record.
func made(t *testing.T) (string, audit.Head) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, audit.Config{Path: path, MaxSize: 1000})
	add(t, l, 12)
	head := l.Head()
	shut(t, l)
	return path, head
}

func linesOf(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(string(b), "\n")+"\n", "\n")
}

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTamperingIsFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, path string, files []string)
		want   string
	}{
		{"nothing", func(*testing.T, string, []string) {}, ""},
		{"a changed word", func(t *testing.T, _ string, f []string) {
			l := linesOf(t, f[1])
			l[0] = strings.Replace(l[0], "test.add", "test.odd", 1)
			write(t, f[1], l...)
		}, "changed"},
		{"a changed hash", func(t *testing.T, _ string, f []string) {
			l := linesOf(t, f[1])
			at := strings.Index(l[0], `"hash":"`) + 8
			l[0] = l[0][:at] + strings.Repeat("0", 64) + l[0][at+64:]
			write(t, f[1], l...)
		}, "changed"},
		{"a missing line", func(t *testing.T, _ string, f []string) {
			l := linesOf(t, f[1])
			write(t, f[1], append(l[:1:1], l[2:]...)...)
		}, "missing"},
		{"a missing first line", func(t *testing.T, _ string, f []string) {
			write(t, f[0], linesOf(t, f[0])[1:]...)
		}, "missing"},
		{"two in another order", func(t *testing.T, _ string, f []string) {
			l := linesOf(t, f[1])
			l[0], l[1] = l[1], l[0]
			write(t, f[1], l...)
		}, "missing"},
		{"a line twice", func(t *testing.T, _ string, f []string) {
			l := linesOf(t, f[1])
			write(t, f[1], append([]string{l[0]}, l...)...)
		}, "stands where"},
		{"a line of another kind", func(t *testing.T, _ string, f []string) {
			write(t, f[1], append([]string{"hello\n"}, linesOf(t, f[1])...)...)
		}, "not a record"},
		{"a missing file", func(t *testing.T, _ string, f []string) { remove(t, f[1]) }, "missing"},
		{"a missing first file", func(t *testing.T, _ string, f []string) { remove(t, f[0]) }, "pruned"},
		{"a missing last file", func(t *testing.T, _ string, f []string) { remove(t, f[len(f)-1]) }, "ends with"},
		{"two files changed places", func(t *testing.T, _ string, f []string) {
			a, b := linesOf(t, f[0]), linesOf(t, f[1])
			write(t, f[0], b...)
			write(t, f[1], a...)
		}, "named for"},
		{"a cut end", func(t *testing.T, path string, _ []string) {
			l := linesOf(t, path)
			write(t, path, l[:len(l)-2]...)
		}, "ends with"},
		{"half of the last line", func(t *testing.T, path string, _ []string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, string(b[:len(b)-30]))
		}, "ends with"},
		{"no head", func(t *testing.T, path string, _ []string) { remove(t, path+".head") }, "missing"},
		{"another head", func(t *testing.T, path string, _ []string) {
			write(t, path+".head", "3:"+strings.Repeat("ab", 32)+"\n")
		}, "another record"},
		{"a forged end", func(t *testing.T, path string, f []string) {
			// A record that is right in itself, and follows what was there before.
			dir := t.TempDir()
			other := filepath.Join(dir, "audit.jsonl")
			l := open(t, audit.Config{Path: other})
			add(t, l, 30)
			shut(t, l)
			got := linesOf(t, path)
			forged := linesOf(t, other)
			got[len(got)-2] = forged[11]
			write(t, path, got...)
		}, "another"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path, _ := made(t)
			tt.change(t, path, files(t, path))
			r, err := audit.Verify(path)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(r.Faults) > 0 {
					t.Fatalf("faults: %v", r.Faults)
				}
				return
			}
			if len(r.Faults) == 0 {
				t.Fatal("not found")
			}
			var all []string
			for _, f := range r.Faults {
				all = append(all, f.String())
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, tt.want) {
				t.Errorf("told: %s\nwant: %s", got, tt.want)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A bit changed anywhere is found.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	path, _ := made(t)
	for _, f := range files(t, path)[:1] {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(b); i += 3 {
			changed := bytes.Clone(b)
			changed[i] ^= 1
			write(t, f, string(changed))
			if r, err := audit.Verify(path); err != nil || len(r.Faults) == 0 {
				t.Fatalf("%s: byte %d of %q can be changed: %v", filepath.Base(f), i, b, err)
			}
		}
		write(t, f, string(b))
	}
	whole(t, path)
}

// A log whose every line was written anew from some point on, head included, is
// whole in itself. Who noted a hash elsewhere finds it.
func TestAHeadThatWasNotedElsewhere(t *testing.T) {
	t.Parallel()
	_, head := made(t)
	forged, _ := made(t)
	whole(t, forged)
	r, err := audit.Verify(forged, head)
	if err != nil || len(r.Faults) != 1 {
		t.Errorf("%v, %v", err, r.Faults)
	}
	if r, err := audit.Verify(forged, audit.Head{Seq: 13, Hash: head.Hash}); err != nil || len(r.Faults) != 1 {
		t.Errorf("a record that isn't there: %v, %v", err, r.Faults)
	}
}

// A start goes on with what a dead process had begun to write, and with nothing
// else.
func TestStartTellsCrashesFromTampering(t *testing.T) {
	t.Parallel()
	part := func(n int) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, string(b)+string(b[:n]))
		}
	}
	zeros := func(t *testing.T, path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(b)+strings.Repeat("\x00", 5000)+"x\n")
	}
	for name, change := range map[string]func(t *testing.T, path string){"a byte": part(1), "half a line": part(150), "blocks without data": zeros} {
		t.Run("cut short: "+name, func(t *testing.T) {
			t.Parallel()
			path, _ := made(t)
			change(t, path)
			if r := whole(t, path); r.Torn == 0 {
				t.Error("it isn't told")
			}
			l := open(t, audit.Config{Path: path})
			page, err := l.Records(t.Context(), stromboli.AuditFilter{Server: true, Action: audit.ActionRepaired, Limit: 9})
			if err != nil || len(page.Records) != 1 || page.Records[0].Seq != 13 {
				t.Errorf("the repair's record: %v, %+v", err, page)
			}
			add(t, l, 3)
			shut(t, l)
			if r := whole(t, path); r.Records != 16 {
				t.Errorf("got %+v", r)
			}
		})
	}
	refused := map[string]func(t *testing.T, path string){
		"a cut end": func(t *testing.T, path string) {
			l := linesOf(t, path)
			write(t, path, l[:len(l)-2]...)
		},
		"half of an acknowledged line": func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, string(b[:len(b)-10]))
		},
		"a changed line": func(t *testing.T, path string) {
			l := linesOf(t, path)
			l[0] = strings.Replace(l[0], "test", "tEst", 1)
			write(t, path, l...)
		},
		"a line more":  func(t *testing.T, path string) { write(t, path, append(linesOf(t, path), "{}\n")...) },
		"no head":      func(t *testing.T, path string) { remove(t, path+".head") },
		"another head": func(t *testing.T, path string) { write(t, path+".head", "12:"+strings.Repeat("ab", 32)+"\n") },
		"no last file": func(t *testing.T, path string) { remove(t, path) },
		"nothing at all": func(t *testing.T, path string) {
			for _, f := range files(t, path) {
				remove(t, f)
			}
		},
	}
	for name, change := range refused {
		t.Run("damaged: "+name, func(t *testing.T) {
			t.Parallel()
			path, _ := made(t)
			change(t, path)
			var damaged *audit.DamagedError
			if _, err := audit.Open(t.Context(), audit.Config{Path: path}); !errors.As(err, &damaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}
