package runner_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// smallDisk is a world's data directory as a file system of its own, whose size
// can be set to the page and whose files can be counted.
type smallDisk struct {
	t   *testing.T
	dir string
}

func (w *world) onSmallDisk() smallDisk {
	w.t.Helper()
	d := smallDisk{w.t, w.data}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "size=256m,nr_inodes=100000,mode=711"); err != nil {
		w.t.Skip("no small disk can be mounted here:", err)
	}
	w.t.Cleanup(func() { must(w.t, unix.Unmount(d.dir, unix.MNT_DETACH)) })
	return d
}

// leave lets so many pages, or files, be written from now on. What grows or is
// made after that fails, whichever file it is.
func (d smallDisk) leave(pages, files int64) {
	d.t.Helper()
	var st unix.Statfs_t
	must(d.t, unix.Statfs(d.dir, &st))
	size, inodes := int64(256<<20), int64(100_000)
	if pages >= 0 {
		size = (int64(st.Blocks-st.Bfree) + pages) * st.Bsize
	}
	if files >= 0 {
		inodes = int64(st.Files-st.Ffree) + files
	}
	must(d.t, unix.Mount("", d.dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d,nr_inodes=%d", size, inodes)))
}

const fullLines = 8

// fullOnce has a run on a disk that gets full in its midst, and reports what
// became of it: "refused", "waited", "untouched" or the reason of its failure.
func (w *world) fullOnce(d smallDisk, pages, files int64) string {
	w.t.Helper()
	l := w.start(options{max: 1})
	defer l.stop()
	waits := w.waits.Load()
	d.leave(pages, files)
	run, err := l.Submit(context.Background(), me(), submission(fmt.Sprintf(`for i in {1..%d}; do echo line $i {1..500}; done; result fine`, fullLines)))
	if err != nil {
		if !errors.Is(err, stromboli.StorageFull) {
			w.t.Errorf("refused: %v", err)
		}
		d.leave(-1, -1)
		return "refused"
	}
	l.eventually("the run ends or waits", func() bool {
		return l.get(run.ID).Status.Terminal() || w.waits.Load() > waits
	})
	before, err := l.store.Events(context.Background(), run.ID, 0, 1000)
	must(w.t, err)
	d.leave(-1, -1)
	got := l.wait(run.ID) // in order, without gaps, ended once
	after, err := l.store.Events(context.Background(), run.ID, 0, 1000)
	must(w.t, err)
	for i, e := range before {
		if after[i].Type != e.Type || string(after[i].Data) != string(e.Data) {
			w.t.Errorf("event %d was %s %s and is %s %s", e.Seq, e.Type, e.Data, after[i].Type, after[i].Data)
		}
	}
	l.empty()
	w.nothingHalf(l)
	lines := 0
	for _, e := range after {
		if e.Type == stromboli.EventOutput && strings.Contains(string(e.Data), "line ") {
			lines++
		}
	}
	switch {
	case got.Status == stromboli.Failed && got.Outcome.Reason == stromboli.ReasonDisk:
		return "failed"
	case got.Status != stromboli.Completed || lines < fullLines:
		w.t.Errorf("%s %s %s, %d lines", got.Status, got.Outcome.Reason, got.Outcome.Error, lines)
		return "wrong"
	case w.waits.Load() > waits:
		return "waited"
	default:
		return "untouched"
	}
}

// nothingHalf checks that each file of the server's is one that something
// refers to.
func (w *world) nothingHalf(l *life) {
	w.t.Helper()
	known := make(map[string]bool)
	runs, _, err := l.store.ListRuns(context.Background(), stromboli.RunFilter{Tenant: "default", Limit: 200})
	must(w.t, err)
	for _, run := range runs {
		session, err := l.store.GetSession(context.Background(), "default", run.SessionID)
		must(w.t, err)
		known[session.TranscriptKey] = true
	}
	blobs := filepath.Join(w.data, "blobs")
	must(w.t, filepath.WalkDir(blobs, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if rel, _ := filepath.Rel(blobs, path); !known[rel] && e.Name() != "lock" {
			w.t.Errorf("nothing refers to %s", rel)
		}
		return nil
	}))
	entries, err := os.ReadDir(w.data)
	must(w.t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") || strings.HasSuffix(e.Name(), "-journal") {
			w.t.Errorf("%s is left", e.Name())
		}
	}
}

// TestDiskFullAtEachWrite: for each page that the server's files grow by in a
// run's way, and for each file and directory that is made, the disk is full
// there. The run is refused, or fails and says so, or waits and completes; no
// stored event is lost, and nothing half-written stays.
func TestDiskFullAtEachWrite(t *testing.T) {
	t.Parallel()
	const worlds, enough, most = 4, 1, 400
	for _, kind := range []string{"pages", "files"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			met := make(map[string]int)
			t.Run("group", func(t *testing.T) {
				for n := range worlds {
					t.Run(fmt.Sprint(n), func(t *testing.T) {
						t.Parallel()
						w := newWorld(t)
						d := w.onSmallDisk()
						for k, untouched := int64(n), 0; untouched < enough; k += worlds {
							if k > most {
								t.Fatal("the disk is full however large it is")
							}
							pages, files := k, int64(-1)
							if kind == "files" {
								pages, files = -1, k
							}
							became := w.fullOnce(d, pages, files)
							if untouched++; became != "untouched" {
								untouched = 0
							}
							mu.Lock()
							met[became]++
							mu.Unlock()
						}
					})
				}
			})
			t.Logf("%v", met)
			if met["refused"]+met["failed"] == 0 || kind == "pages" && (met["refused"] == 0 || met["waited"] == 0) || met["untouched"] < worlds*enough {
				t.Errorf("what was met: %v", met)
			}
		})
	}
}
