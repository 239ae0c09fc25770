package client_test

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

// What makes and follows runs waits as long as a server that is asked too often
// says, and goes on.
func TestAskedTooOften(t *testing.T) {
	fake := apitest.New()
	fake.OnSubmit = func(run stromboli.Run) { fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed}) }
	addr, _ := serve(t, fake, "127.0.0.1:0", func(c *api.Config) { c.RateLimit = api.RateLimit{RPS: 2, Burst: 1} })
	c := dial(t, addr)
	begin := time.Now()
	job, err := c.RunAsync(t.Context(), stromboli.RunSpec{Prompt: "p"})
	if err != nil {
		t.Fatal(err)
	}
	last := stromboli.EventType("")
	for e, err := range c.Events(t.Context(), job.JobID, 0) {
		if err != nil {
			t.Fatal(err)
		}
		last = e.Type
	}
	if _, err := c.Run(t.Context(), stromboli.RunSpec{Prompt: "p"}); err != nil || last != stromboli.EventRunFinished {
		t.Errorf("%v, the last event is %q", err, last)
	}
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("it took %s: nothing was limited", took)
	}
	if n := len(fake.Submissions()); n != 2 {
		t.Errorf("%d runs", n)
	}
}
