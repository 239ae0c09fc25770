package podman

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// stub is a client of a service that handler plays.
func stub(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "st-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/_ping") {
			return
		}
		handler(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	c, err := Open(t.Context(), OpenConfig{Host: "unix://" + socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestErrorsKeepTheEnginesWords(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   error
		text   string
	}{
		{404, `{"cause":"no such container","message":"no container with name x","response":404}`, engine.ErrNotFound, "no container with name x"},
		{500, `{"message":"x: image not known"}`, engine.ErrImageMissing, "image not known"},
		{500, `{"message":"write /var: no space left on device"}`, engine.ErrStorageFull, "no space left"},
		{409, `{"message":"busy"}`, engine.ErrConflict, "busy"},
		{400, `{"message":"bad"}`, engine.ErrInvalid, "bad"},
		{500, `plain words`, nil, "plain words"},
		{502, ``, nil, "502 Bad Gateway"},
		{500, `{"message":"keep-id requires additional UIDs"}`, nil, "--add-subuids"},
	} {
		client := stub(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		})
		_, err := client.Inspect(t.Context(), "x")
		e, ok := errors.AsType[*engine.Error](err)
		if !ok || e.Status != c.status || !strings.Contains(err.Error(), c.text) || !strings.HasPrefix(err.Error(), "inspect container x: ") ||
			c.want != nil && !errors.Is(err, c.want) || errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}

func TestRemoveRetriesWhileBusy(t *testing.T) {
	tries := 0
	c := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); r.Method != http.MethodDelete || q.Get("force") != "true" || q.Get("timeout") != "0" || q.Get("v") != "true" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		tries++
		switch tries {
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"message":"unmounting: device or resource busy"}`))
		case 2:
			_, _ = w.Write([]byte(`[{"Id":"x","Err":"container state improper"}]`))
		default:
			_, _ = w.Write([]byte(`[{"Id":"x"}]`))
		}
	})
	if err := c.Remove(t.Context(), "x"); err != nil || tries != 3 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

func TestCallsEndWithTheirContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("hang", func(t *testing.T) {
		c := stub(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the client is gone
			<-r.Context().Done()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		for name, call := range map[string]func() error{
			"wait":   func() error { _, err := c.Wait(ctx, "x"); return err },
			"start":  func() error { return c.Start(ctx, "x") },
			"create": func() error { _, err := c.Create(ctx, engine.ContainerSpec{}); return err },
			"events": func() error {
				var last error
				for _, last = range c.Events(ctx, engine.EventFilter{}) {
				}
				return last
			},
		} {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// The call's own deadline is the engine's fault.
		err := c.call(t.Context(), request{op: "x", method: http.MethodGet, path: "/x", limit: 30 * time.Millisecond}, nil)
		if !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("the call's own deadline: %v", err)
		}
	})
}

func TestOpenSaysWhatToDo(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		cfg  OpenConfig
		want string
	}{
		"ssh":        {OpenConfig{Host: "ssh://a@b/run/podman.sock"}, "must be on this machine"},
		"relative":   {OpenConfig{Host: "unix://a"}, "must be on this machine"},
		"nobody":     {OpenConfig{Host: "unix://" + dir + "/none.sock"}, "no such file"},
		"no service": {OpenConfig{PrivateStore: true, Dir: dir}, "CONTAINER_HOST"},
		"long path":  {OpenConfig{PrivateStore: true, AllowOwnService: true, Dir: "/tmp/" + strings.Repeat("x", 100)}, "shorter data directory"},
	} {
		c.cfg.Log, c.cfg.Environ = log, os.Environ()
		_, err := Open(t.Context(), c.cfg)
		if name == "long path" && err != nil && strings.Contains(err.Error(), "not installed") {
			continue
		}
		if !errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunDirectory(t *testing.T) {
	p := placesIn(filepath.Join(t.TempDir(), strings.Repeat("long", 12)))
	if err := p.makeRun(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.run) })
	again := placesIn(p.dir)
	if err := again.makeRun(); err != nil || again.run != p.run || len(p.run) > maxRunroot {
		t.Errorf("%s, then %s, %v", p.run, again.run, err)
	}
	if err := os.Chmod(p.run, 0o777); err != nil {
		t.Fatal(err)
	}
	again = placesIn(p.dir)
	if err := again.makeRun(); err == nil {
		t.Error("a directory that is open to others was taken")
	}
}

func TestForgetLastBoot(t *testing.T) {
	dir := t.TempDir()
	s := &service{places: placesIn(dir)}
	old := filepath.Join(s.places.run, "libpod", "alive")
	put := func(file, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(old, "")
	put(filepath.Join(dir, "boot_id"), "another boot\n")
	for _, want := range []bool{false, true} {
		if err := s.forgetLastBoot(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(old); (err == nil) != want {
			t.Errorf("there: %v, want %v", err == nil, want)
		}
		put(old, "") // of this boot: stays
	}
}

func TestHasSubIDs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(file, []byte("alice:100000:65536\n1002:300000:65536\nbob:1:0\nbroken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for names, want := range map[string]bool{"1001 alice": true, "1002 carol": true, "1003 bob": false, "1004 dave": false} {
		if got := hasSubIDs(file, strings.Fields(names)); got != want {
			t.Errorf("%s: %v", names, got)
		}
	}
}

func TestWireSpec(t *testing.T) {
	c := &Client{host: hostFacts{Nofile: 1000, Nproc: 500}}
	w := c.wireSpec(engine.ContainerSpec{
		NanoCPUs: 1, MemoryBytes: 5, Nofile: 2000, Nproc: 100, StopTimeout: 1500 * time.Millisecond,
		UserNS: engine.UserNS{KeepID: true, UID: 1000, GID: 1001},
	})
	if w.Resources.CPU.Quota != 1000 || w.Resources.Memory.Swap != 5 || w.StopTimeout != 2 || w.UserNS.Value != "uid=1000,gid=1001" ||
		w.Rlimits[0].Hard != 1000 || w.Rlimits[1].Hard != 100 || w.NetNS.Mode != "none" || w.HTTPProxy || w.CgroupsMode != "enabled" {
		t.Errorf("%+v", w)
	}
	w = c.wireSpec(engine.ContainerSpec{
		SeccompUnconfined: true, Unmasked: true, HostIPC: true, HostUTS: true, HostCgroup: true, MemoryBytes: 5, Swap: true, PidsLimit: -1, ShmBytes: 1, Hostname: "x",
	})
	if w.Seccomp != "unconfined" || !slices.Equal(w.Unmask, []string{"ALL"}) || w.IpcNS.Mode != "host" || w.UtsNS.Mode != "host" || w.CgroupNS.Mode != "host" ||
		w.PidNS.Mode != "private" || w.Resources.Memory.Swap != 10 || w.Resources.Pids.Limit != -1 || w.ShmSize != 0 || w.Hostname != "" {
		t.Errorf("%+v", w)
	}
	c.host.SysResource = true
	if w := c.wireSpec(engine.ContainerSpec{Nofile: 2000}); len(w.Rlimits) != 1 || w.Rlimits[0].Hard != 2000 {
		t.Errorf("%+v", w.Rlimits)
	}
}

func TestMapsLayers(t *testing.T) {
	for release, want := range map[string]bool{
		"5.19.0": true, "5.18.99": false, "6.1.0-13-amd64": true, "10.0": true, "4.20.1": false, "5.4": false, "": false, "linux": false,
	} {
		if got := mapsLayers(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

// TestRegistryErrors: the faults of registries are told apart by the engine's
// words, those that releases were seen to use.
func TestRegistryErrors(t *testing.T) {
	for message, want := range map[string]error{
		"initializing source docker://h/x:1: reading manifest 1 in h/x: name unknown: Unknown name":                                                  engine.ErrImageMissing,
		"initializing source docker://h/x:1: reading manifest 1 in h/x: manifest unknown":                                                            engine.ErrImageMissing,
		"choosing an image from manifest list docker://h/x:1: no image found in manifest list for architecture amd64, variant \"\", OS linux":        engine.ErrImageMissing,
		"initializing source docker://h/x:1: reading manifest 1 in h/x: unauthorized: authentication required":                                       engine.ErrDenied,
		"unable to retrieve auth token: invalid username/password: unauthorized":                                                                     engine.ErrDenied,
		"initializing source docker://h/x:1: pinging container registry h: Get \"https://h/v2/\": dial tcp 127.0.0.1:1: connect: connection refused": engine.ErrRegistry,
		"writing blob: storing blob to file \"/var/tmp/storage1/1\": happened during read: unexpected EOF":                                           engine.ErrInterrupted,
		"writing blob: adding layer with blob \"sha256:1\": write /x: no space left on device":                                                       engine.ErrStorageFull,
	} {
		err := registryError(&engine.Error{Op: "pull", Message: message, Kind: kindOf(0, message, nil)})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", message, errors.Unwrap(err), want)
		}
		if strings.Contains(message, "refused") && errors.Is(err, engine.ErrInterrupted) {
			t.Errorf("%s would be tried again", message)
		}
	}
	gone := &engine.Error{Op: "pull", Message: "EOF", Kind: engine.ErrUnavailable}
	if err := registryError(gone); !errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrRegistry) {
		t.Errorf("the engine went away: %v", err)
	}
}
