// Package podman drives Podman through libpod's REST API over a unix socket,
// with net/http and nothing else. It speaks to Podman 4.3 and newer.
//
// It owns the choice of the service to speak to, and, where none runs, a
// `podman system service` of its own: started under a file lock, in a session
// of its own, with a log file and a containers.conf below OpenConfig.Dir,
// adopted by the next process and started again when it dies. Containers
// outlive the service and this process.
//
// It promises what package engine says. It refuses engines on another machine
// (the sandboxes' sockets and mounts need this kernel), never writes the
// user's own configuration and never changes a store that it didn't make.
package podman

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// OpenConfig says which Podman to use.
type OpenConfig struct {
	// Host is the address of a service, as in CONTAINER_HOST:
	// unix:///path/to/socket. When set, nothing else is tried.
	Host string
	// Dir is where a service of our own keeps its socket, lock, log and
	// configuration, and its store where the user's can't be used. Made, 0700,
	// when needed.
	Dir string
	// AllowOwnService lets Open start a service when none answers.
	AllowOwnService bool
	// PrivateStore always starts a service of our own on a store of its own
	// below Dir, whatever else is there.
	PrivateStore bool
	// Environ is the environment, as from os.Environ, from which places and
	// proxies are read. Only a few of its variables reach a service of our own.
	Environ []string
	// Log is told what is started and why. Required.
	Log *slog.Logger
	// Called, if set, is told of each call: which of a fixed set it was, how long
	// the engine took to answer, and what went wrong. It must be quick.
	Called func(operation string, took time.Duration, err error)
}

// Client is an engine.Engine. Use Open to make one.
type Client struct {
	socket  string
	service *service // nil: not ours
	http    *http.Client
	log     *slog.Logger
	called  func(operation string, took time.Duration, err error)
	host    hostFacts
	podman  string   // the command's path, "" when there is none
	notes   []string // set by Open
	outside bool     // set by Open
	pid     int      // of the service or of who listens for it, set by Open; 0: not known

	infoMu sync.Mutex // guards the rest
	info   engine.Info
	infoAt time.Time
}

var _ engine.Engine = (*Client)(nil)

// Open chooses a service: cfg.Host, else this user's default socket where it
// answers, else one of our own, which it starts or adopts and waits for. It
// starts no goroutine. An error is engine.ErrUnavailable and says what to do.
func Open(ctx context.Context, cfg OpenConfig) (*Client, error) {
	c, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if pid, err := listenerOf(ctx, c.socket); err == nil {
		c.host.limitsOf(pid)
		c.outside, c.pid = pid == 0, pid
	}
	return c, nil
}

func open(ctx context.Context, cfg OpenConfig) (*Client, error) {
	env := parseEnviron(cfg.Environ)
	c := &Client{log: cfg.Log, called: cfg.Called, host: readHost()}
	c.podman, _ = lookPath("podman", env["PATH"])
	c.http = &http.Client{Transport: c.transport()}
	switch {
	case cfg.Host != "":
		socket, err := socketOf(cfg.Host)
		if err != nil {
			return nil, err
		}
		c.socket = socket
		if err := c.Ping(ctx); err != nil {
			return nil, fmt.Errorf("the container engine named by configuration (%s): %w", cfg.Host, err)
		}
		return c, nil
	case !cfg.PrivateStore:
		c.socket = defaultSocket(c.host, env)
		if c.answers(ctx, time.Second) == nil {
			c.log.Info("using the engine at its default socket", "socket", c.socket)
			return c, nil
		}
	}
	if !cfg.AllowOwnService {
		return nil, unavailable("open the container engine", fmt.Sprintf(
			"nothing answers at %s; start one with `podman system service -t 0`, or set CONTAINER_HOST", c.socket))
	}
	s, err := newService(ctx, c, cfg, env)
	if err != nil {
		return nil, err
	}
	c.socket, c.service = s.socket, s
	if err := s.ensure(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Run watches over a service of our own until ctx ends, and starts it again as
// soon as it dies. The service itself goes on when Run returns. For any other
// service it only waits. It returns nil when ctx ends.
func (c *Client) Run(ctx context.Context) error {
	if c.service == nil {
		<-ctx.Done()
		return nil
	}
	return c.service.run(ctx)
}

// Close lets go of idle connections. Nothing else ends.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Own reports whether the service is one of our own.
func (c *Client) Own() bool { return c.service != nil }

// Outside reports whether the engine is outside the container that this
// process is in: the kernel has no name for its service's process here.
func (c *Client) Outside() bool { return c.outside }

// PID is the process that listens on the service's socket: the service, or its
// init system. 0 where it is not known.
func (c *Client) PID() int { return c.pid }

// Socket is the path of the service's socket.
func (c *Client) Socket() string { return c.socket }

// StopService ends a service of our own, whoever started it, and returns when
// it is gone. Containers go on running. For any other service it does nothing.
func (c *Client) StopService(ctx context.Context) error {
	if c.service == nil {
		return nil
	}
	c.Close()
	return c.service.stop(ctx)
}

// CLI is the podman command line with args that works on the same images and
// containers, for what the API doesn't serve well, such as `podman build`.
func (c *Client) CLI(ctx context.Context, args ...string) *exec.Cmd {
	argv, env := c.CLIArgs()
	argv = append(argv, args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	return cmd
}

// CLIArgs is what CLI puts before its arguments, and the whole environment
// (nil: this process's own).
func (c *Client) CLIArgs() (argv, env []string) {
	name := c.podman
	if name == "" {
		name = "podman"
	}
	if c.service == nil {
		return []string{name, "--url", "unix://" + c.socket}, nil
	}
	return append([]string{name}, c.service.flags...), c.service.env
}

// socketOf takes the path out of a CONTAINER_HOST.
func socketOf(host string) (string, error) {
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", unavailable("open the container engine", fmt.Sprintf(
			"%q is not supported: the engine must be on this machine, as unix:///path/to/podman.sock; "+
				"where it has a virtual machine of its own (podman machine), run the server inside that (podman machine ssh)", host))
	}
	return path, nil
}

func unavailable(op, message string) error {
	return &engine.Error{Op: op, Message: message, Kind: engine.ErrUnavailable}
}
