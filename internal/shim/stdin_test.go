package shim

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestStdinIsWrittenOnceByID(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash("cat")))
	frame := func(id uint64) []byte { return fmt.Appendf(nil, "frame %d\n", id) }
	wantCode(t, s.Stdin(ctx(t), 2, frame(2)), CodeInvalid)
	for _, id := range []uint64{1, 1, 2, 1, 2, 3} {
		must(t, s.Stdin(ctx(t), id, frame(id)))
	}
	s.die()
	s = b.serve(nil)
	h, err := s.Ready(ctx(t))
	must(t, err)
	if h.Agent != (State{ProcessID: "run-1", LastStdin: 3}) || h.LastSeq < 3 {
		t.Errorf("hello after the server's death: %+v", h)
	}
	must(t, s.Stdin(ctx(t), 3, frame(3)))
	must(t, s.Stdin(ctx(t), 4, frame(4)))
	must(t, s.CloseStdin(ctx(t)))
	must(t, s.CloseStdin(ctx(t)))
	must(t, s.Stdin(ctx(t), 4, frame(4)))
	wantCode(t, s.Stdin(ctx(t), 5, frame(5)), CodeStdinClosed)
	wantCode(t, s.Stdin(ctx(t), 6, make([]byte, MaxStdin+1)), CodeInvalid)
	lines, status := s.finish(0)
	if got := text(lines, Stdout); got != "frame 1\nframe 2\nframe 3\nframe 4\n" || status != (ExitStatus{}) {
		t.Errorf("the agent read %q and exited with %+v", got, status)
	}
	if got := strings.Count(text(lines, StdinRecord), "\n"); got != 4 {
		t.Errorf("%d records of stdin, want 4", got)
	}
}

// A prompt far larger than a pipe arrives whole, also when the agent takes its
// time and the server dies meanwhile.
func TestLargeStdin(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash(`echo up; while [ ! -e `+b.work+`/go ]; do sleep 0.02; done; cat > `+b.work+`/got`)))
	data := bytes.Repeat([]byte("0123456789"), 400_000)
	first := make(chan error, 1)
	c := ctx(t)
	go func(s *server) { first <- s.Stdin(c, 1, data) }(s)
	if _, err := s.Next(ctx(t), 0, 1); err != nil {
		t.Fatal(err)
	}
	s.die()
	if err := <-first; err == nil {
		t.Error("a frame is answered that the agent has not read")
	}
	s = b.serve(nil)
	must(t, os.WriteFile(b.work+"/go", nil, 0o644))
	must(t, s.Stdin(ctx(t), 1, data))
	must(t, s.CloseStdin(ctx(t)))
	if _, status := s.finish(0); status != (ExitStatus{}) {
		t.Errorf("exit %+v", status)
	}
	got, err := os.ReadFile(b.work + "/got")
	must(t, err)
	if !bytes.Equal(got, data) {
		t.Errorf("the agent read %d bytes of %d", len(got), len(data))
	}
}

// An agent that never reads is ended like any other, and the frame is answered.
func TestStdinThatNobodyReads(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash(`echo up; sleep 1000`)))
	answer := make(chan error, 1)
	c := ctx(t)
	go func() { answer <- s.Stdin(c, 1, make([]byte, 1<<20)) }()
	if _, err := s.Next(ctx(t), 0, 1); err != nil {
		t.Fatal(err)
	}
	must(t, s.Stop(ctx(t), StopRequest{}))
	s.finish(0)
	wantCode(t, <-answer, CodeStdinClosed)
}
