package shim

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFiles(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	data := make([]byte, 3*fileChunk+17)
	for i := range data {
		data[i] = byte(rand.IntN(256))
	}
	path := filepath.Join(b.work, "a/b/transcript.jsonl")
	for _, content := range [][]byte{data, []byte("short"), {}} {
		must(t, s.WriteFile(ctx(t), path, agentUID, agentGID, 0o600, bytes.NewReader(content)))
		got, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, content) {
			t.Errorf("%d bytes were written as %d", len(content), len(got))
		}
		var back bytes.Buffer
		must(t, s.ReadFile(ctx(t), path, agentUID, agentGID, &back, int64(len(content))))
		if !bytes.Equal(back.Bytes(), content) {
			t.Errorf("%d bytes were read as %d", len(content), back.Len())
		}
	}
	fi, err := os.Stat(path)
	must(t, err)
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode().Perm() != 0o600 || st.Uid != agentUID || st.Gid != agentGID {
		t.Errorf("the file is %v of %d:%d", fi.Mode(), st.Uid, st.Gid)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left beside the file: %v", entries)
	}
}

func TestFileRefusals(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	secret := filepath.Join(b.host, "root-only")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	in := func(name string) string { return filepath.Join(b.work, name) }
	must(t, os.Symlink(secret, in("link")))
	must(t, os.Symlink(b.host, in("dirlink")))
	must(t, unix.Mkfifo(in("fifo"), 0o666))
	must(t, os.WriteFile(in("big"), make([]byte, 1001), 0o644))
	read := func(path string, uid int) error {
		return s.ReadFile(ctx(t), path, uid, agentGID, io.Discard, 1000)
	}
	write := func(path string, uid int) error {
		return s.WriteFile(ctx(t), path, uid, agentGID, 0o644, strings.NewReader("x"))
	}
	for name, c := range map[string]struct {
		err  error
		code string
	}{
		"read missing":               {read(in("missing"), agentUID), CodeNotExist},
		"read through a symlink":     {read(in("link"), agentUID), CodePermission},
		"read the spool":             {read(filepath.Join(b.run, "spool"), agentUID), CodePermission},
		"read a FIFO":                {read(in("fifo"), agentUID), CodeNotRegular},
		"read a directory":           {read(b.work, agentUID), CodeNotRegular},
		"read too much":              {read(in("big"), agentUID), CodeTooLarge},
		"read as root":               {read(in("big"), 0), CodeInvalid},
		"read a relative path":       {read("etc/passwd", agentUID), CodeInvalid},
		"write as root":              {write(in("x"), 0), CodeInvalid},
		"write elsewhere":            {write(filepath.Join(b.host, "x"), agentUID), CodePermission},
		"write through a symlink":    {write(in("dirlink/x"), agentUID), CodePermission},
		"write a relative path":      {write("x", agentUID), CodeInvalid},
		"write over a directory":     {write(b.work, agentUID), CodePermission},
		"write below a regular file": {write(in("big/x"), agentUID), CodeFailed},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, c.err, c.code) })
	}
	if err := read(in("missing"), agentUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
	// A link in the file's place is replaced, not followed.
	must(t, write(in("link"), agentUID))
	if got, _ := os.ReadFile(secret); string(got) != "secret" {
		t.Errorf("root's file is now %q", got)
	}
	if fi, err := os.Lstat(in("link")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("the link is now %v, %v", fi.Mode(), err)
	}
}

// A source that fails leaves the file as it was.
func TestWriteIsWholeOrNothing(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	path := filepath.Join(b.work, "f")
	must(t, s.WriteFile(ctx(t), path, agentUID, agentGID, 0o644, strings.NewReader("old")))
	broken := io.MultiReader(bytes.NewReader(make([]byte, fileChunk)), errReader{})
	if err := s.WriteFile(ctx(t), path, agentUID, agentGID, 0o644, broken); !errors.Is(err, errBroken) {
		t.Errorf("error is %v, want the source's", err)
	}
	// A cut is an error for a source that can't be rewound, and no more than
	// a delay for one that can.
	cutting := &cutter{Reader: bytes.NewReader(make([]byte, 3*fileChunk)), cut: s.drop}
	if err := s.WriteFile(ctx(t), path, agentUID, agentGID, 0o644, cutting); !errors.Is(err, ErrInterrupted) {
		t.Errorf("error is %v, want ErrInterrupted", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("the file has %d bytes now", len(got))
	}
	rewound := &seekCutter{cutter{Reader: bytes.NewReader(make([]byte, 3*fileChunk)), cut: s.drop}}
	must(t, s.WriteFile(ctx(t), path, agentUID, agentGID, 0o644, rewound))
	if fi, err := os.Stat(path); err != nil || fi.Size() != 3*fileChunk {
		t.Errorf("the file: %v, %v", fi, err)
	}
	eventually(t, "nothing is left of the attempts", func() bool {
		entries, err := os.ReadDir(b.work)
		return err == nil && len(b.processes()) == 1 && len(entries) >= 1
	})
}

var errBroken = errors.New("broken source")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// cutter cuts the connection once in the middle.
type cutter struct {
	*bytes.Reader
	cut  func()
	read int
}

func (c *cutter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	if c.read += n; c.cut != nil && c.read > fileChunk {
		c.cut()
		c.cut = nil
	}
	return n, err
}

// Seek hides the embedded reader's: this source can't be rewound.
func (c *cutter) Seek(struct{}) {}

type seekCutter struct{ cutter }

func (c *seekCutter) Seek(off int64, whence int) (int64, error) { return c.Reader.Seek(off, whence) }

func TestMounts(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	// Root's power in a sandbox ends at others' files: there the helper looks
	// as the agent. Where only root may look it looks as root.
	private := filepath.Join(b.work, "private")
	must(t, os.MkdirAll(filepath.Join(private, "x"), 0o700))
	must(t, os.Chown(private, agentUID, agentGID))
	hidden := filepath.Join(b.run, "hidden") // the run directory is 0700
	must(t, os.Mkdir(hidden, 0o700))
	targets := []string{hidden, filepath.Join(private, "x"), "/no/such"}
	got, err := s.Mounts(ctx(t), targets, agentUID, agentGID)
	must(t, err)
	for i, target := range targets[:2] {
		var st unix.Stat_t
		must(t, unix.Stat(target, &st))
		if want := (MountStat{Target: target, Dev: st.Dev, Ino: st.Ino}); got[i] != want {
			t.Errorf("%+v, want %+v", got[i], want)
		}
	}
	if got[2].Err == "" || got[2].Target != "/no/such" {
		t.Errorf("a missing target: %+v", got[2])
	}
	if got, err := s.Mounts(ctx(t), nil, agentUID, agentGID); err != nil || len(got) != 0 {
		t.Errorf("no targets: %v, %v", got, err)
	}
	if _, err := s.Mounts(ctx(t), targets, 0, 0); err == nil {
		t.Error("mounts are looked at as root")
	}
	many := make([]string, 10_000)
	for i := range many {
		many[i] = b.work
	}
	if got, err := s.Mounts(ctx(t), many, agentUID, agentGID); err != nil || len(got) != len(many) {
		t.Errorf("%d of %d targets, %v", len(got), len(many), err)
	}
}

// A helper can't be traced or looked into by the agent, whose uid it has.
func TestHelperIsNotTheAgents(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	// The helper waits for its third chunk while the agent looks at it.
	r, w := io.Pipe()
	done := make(chan error, 1)
	c := ctx(t)
	go func() {
		done <- s.WriteFile(c, filepath.Join(b.work, "f"), agentUID, agentGID, 0o644, r)
	}()
	// The second is asked for when the helper has begun to take the first.
	for range 2 {
		_, err := w.Write(make([]byte, fileChunk))
		must(t, err)
	}
	must(t, s.Start(ctx(t), b.bash(`for p in /proc/[0-9]*; do
  pid=${p#/proc/}; [ $pid = 1 ] && continue; [ $pid = $$ ] && continue
  grep -q '^Uid:.*1000' $p/status || continue
  grep -qa helper $p/cmdline || continue
  echo found; ls $p/fd; cat $p/environ; head -c 1 $p/mem
done 2>&1`)))
	lines, _ := s.finish(0)
	out := text(lines, Stdout)
	if !strings.Contains(out, "found") || strings.Count(out, "Permission denied") < 3 {
		t.Errorf("the agent saw:\n%s", out)
	}
	_ = w.Close()
	// Its user's end was its own.
	wantCode(t, <-done, CodeInterrupted)
}
