package image

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// TestOnePullForMany: however many ask, the registry is asked once, and all
// learn how far it is and what came of it.
func TestOnePullForMany(t *testing.T) {
	f := newFixture(t)
	gate := make(chan struct{})
	f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool), Gate: gate})
	const many = 20
	var told, done sync.WaitGroup
	told.Add(many)
	results := make([]stromboli.PulledImage, many)
	for i := range many {
		done.Go(func() {
			var once sync.Once
			var err error
			results[i], err = f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, func(p stromboli.ImageProgress) {
				if p.Stage == stromboli.StageDownloading && p.Image == tool && p.Current == 1 {
					once.Do(told.Done)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	told.Wait()
	close(gate)
	done.Wait()
	if n := len(f.engine.Pulls()); n != 1 {
		t.Errorf("%d pulls", n)
	}
	for _, r := range results {
		if r != results[0] || r.Name != tool || r.ID == "" {
			t.Errorf("%+v", r)
		}
	}
	// Afterwards it is another pull: the name may mean another image by now.
	if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != 2 {
		t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
	}
}

// TestLeavingAPull: one who goes away doesn't end the others' pull, the last one
// does, unless somebody wished it kept.
func TestLeavingAPull(t *testing.T) {
	for _, keep := range []bool{false, true} {
		f := newFixture(t)
		gate := make(chan struct{})
		f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool), Gate: gate})
		ask := func() (leave context.CancelFunc, result chan error) {
			ctx, cancel := context.WithCancel(t.Context())
			result = make(chan error, 1)
			begun := make(chan struct{})
			go func() {
				var once sync.Once
				_, err := f.Pull(ctx, stromboli.ImageWish{Name: tool, Keep: keep}, func(p stromboli.ImageProgress) {
					if p.Stage == stromboli.StageDownloading {
						once.Do(func() { close(begun) })
					}
				})
				result <- err
			}()
			<-begun
			return cancel, result
		}
		leave1, result1 := ask()
		leave2, result2 := ask()
		leave1()
		if err := <-result1; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		leave2()
		if err := <-result2; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		if !keep {
			// The pull ends, and another one may begin and succeed.
			close(gate)
			if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != 2 {
				t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
			}
			continue
		}
		leave3, result3 := ask() // joins
		defer leave3()
		close(gate)
		if err := <-result3; err != nil || len(f.engine.Pulls()) != 1 {
			t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
		}
	}
}

func TestPullFails(t *testing.T) {
	never := make(chan struct{})
	f := newFixture(t, func(c *Config) { c.PullTimeout = 50 * time.Millisecond })
	fault := func(kind error, text string) enginetest.Offer {
		return enginetest.Offer{Err: &engine.Error{Op: "pull", Message: text, Kind: kind}}
	}
	f.engine.Offer("registry.example/slow:1", enginetest.Offer{Gate: never})
	f.engine.Offer("registry.example/cut:1", fault(engine.ErrRegistry, "unexpected EOF"))
	f.engine.Offer("registry.example/private:1", fault(engine.ErrDenied, "unauthorized"))
	f.engine.Offer("registry.example/full:1", fault(engine.ErrStorageFull, "no space left on device"))
	f.engine.Offer("registry.example/down:1", fault(engine.ErrUnavailable, "gone"))
	for _, tt := range []struct {
		name, platform string
		code           stromboli.Code
		says           string
	}{
		{"registry.example/slow:1", "", stromboli.RegistryFailed, "within 50ms (STROMBOLI_AGENT_PULL_TIMEOUT)"},
		{"registry.example/cut:1", "", stromboli.RegistryFailed, "unexpected EOF"},
		{"registry.example/private:1", "", stromboli.RegistryFailed, "podman login registry.example"},
		{"registry.example/full:1", "", stromboli.StorageFull, "disk is full"},
		{"registry.example/down:1", "", stromboli.EngineDown, "engine"},
		{"registry.example/none:1", "linux/arm64", stromboli.NotFound, "for linux/arm64"},
		{"elsewhere.example/x", "", stromboli.ImageForbidden, "elsewhere.example/x:latest"},
		{"tool", "", stromboli.ImageForbidden, "docker.io/library/tool:latest"},
		{"No such name", "", stromboli.Invalid, "image: "},
		{tool, "arm64", stromboli.Invalid, "platform: "},
		{tool, "linux/../x", stromboli.Invalid, "platform: "},
	} {
		_, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tt.name, Platform: tt.platform}, nil)
		if stromboli.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v, want %s that says %q", tt.name, tt.platform, err, tt.code, tt.says)
		}
	}
	if n := len(f.flights); n != 0 {
		t.Errorf("%d pulls are left", n)
	}
}

// TestBrokenConnection: a pull that breaks off is begun again, a few times.
func TestBrokenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.engine.Offer(tool, enginetest.Offer{Err: &engine.Error{Op: "pull", Message: "unexpected EOF", Kind: engine.ErrInterrupted}})
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.RegistryFailed) || len(f.engine.Pulls()) != pullAttempts {
			t.Errorf("%v after %d attempts", err, len(f.engine.Pulls()))
		}
		go func() {
			<-time.After(pullPause / 2) // of the bubble's clock: between two attempts
			f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool)})
		}()
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != pullAttempts+2 {
			t.Errorf("%v after %d attempts", err, len(f.engine.Pulls()))
		}
	})
}

// TestTooManyPulls: four go on at a time, and no more than so many wait.
func TestTooManyPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := errors.New("no room")
		full := false
		f := newFixture(t, func(c *Config) {
			c.Room = func() error {
				if full {
					return room
				}
				return nil
			}
		})
		gate := make(chan struct{})
		name := func(i int) string { return "registry.example/x" + strconv.Itoa(i) + ":1" }
		var all sync.WaitGroup
		for i := range maxFlights {
			f.engine.Offer(name(i), enginetest.Offer{Archive: archive(t, name(i)), Gate: gate})
			all.Go(func() {
				if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: name(i)}, nil); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := len(f.engine.Pulls()); n != maxPulls {
			t.Errorf("%d pulls at a time", n)
		}
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.QueueFull) {
			t.Errorf("one more: %v", err)
		}
		// Nobody's limit runs while it waits for its turn.
		<-time.After(30 * time.Second)
		close(gate)
		all.Wait()
		full = true
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: name(0)}, nil); !errors.Is(err, room) {
			t.Errorf("without room: %v", err)
		}
	})
}

func TestCloseEndsPulls(t *testing.T) {
	f := newFixture(t)
	f.engine.Offer(tool, enginetest.Offer{Gate: make(chan struct{})})
	result := make(chan error, 1)
	begun := make(chan struct{})
	var once sync.Once
	go func() {
		_, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool, Keep: true}, func(p stromboli.ImageProgress) {
			if p.Stage == stromboli.StageDownloading {
				once.Do(func() { close(begun) })
			}
		})
		result <- err
	}()
	<-begun
	f.Close()
	if err := <-result; !errors.Is(err, stromboli.Draining) {
		t.Error(err)
	}
	if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.Draining) {
		t.Error(err)
	}
}

func TestInsecureRegistries(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Patterns, _ = policy.ParseImagePatterns([]string{"*"})
		c.Insecure = []string{"lab.example:5000", "plain.example"}
	})
	for name, want := range map[string]bool{
		"127.0.0.1:5000/x": true, "localhost:5000/x": true, "127.9.9.9/x": true,
		"lab.example:5000/x": true, "lab.example/x": false, "plain.example:1/x": true, "ghcr.io/x/y": false, "python": false, "127.0.0.1.nip.io/x": false,
	} {
		_, spec, err := f.wanted(stromboli.ImageWish{Name: name})
		if err != nil || spec.Insecure != want {
			t.Errorf("%s: %v, %v", name, spec.Insecure, err)
		}
	}
}
