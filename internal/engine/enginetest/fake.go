// Package enginetest has what tests of and with container engines need: a
// fake engine in memory, the conformance suite that it and real Podman pass,
// a tiny image to run, and ordinary users for rootless tests.
//
// It promises that a test leaves nothing behind: containers carry a label of
// their own and go with the test, users go with everything of theirs. It is
// imported by tests only.
package enginetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Program stands for a container's first process in a Fake. It runs in a
// goroutine of its own and must return when ctx ends, which is what KILL does.
// Its result is the exit code.
type Program func(ctx context.Context, p Process) int

// Process is what a Program sees.
type Process struct {
	ID      string
	Spec    engine.ContainerSpec
	Signals <-chan string // without SIG; KILL never comes
}

// FakeConfig configures a Fake.
type FakeConfig struct {
	// Info is what Info answers; zero fields get plausible values.
	Info engine.Info
	// Program is run for each started container; nil behaves as the probe does
	// in its modes exit, sleep and term.
	Program Program
	// Fail, when set, is asked before each call by the method's name; its error
	// is the call's.
	Fail func(method string) error
}

// Fake is an engine.Engine in memory. Its containers are goroutines.
type Fake struct {
	cfg FakeConfig

	mu         sync.Mutex
	wake       chan struct{} // closed and replaced at every change
	containers map[string]*fakeContainer
	images     map[string]*fakeImage // by name
	offers     map[string]Offer      // by name
	secrets    []engine.Secret
	pulls      []engine.Pull
	events     []engine.Event
	serial     int
	running    sync.WaitGroup
	closed     bool
}

type fakeContainer struct {
	engine.Container
	spec    engine.ContainerSpec
	image   *fakeImage
	signals chan string
	kill    context.CancelFunc
	killed  bool
}

var _ engine.Engine = (*Fake)(nil)

// NewFake makes a Fake without images.
func NewFake(cfg FakeConfig) *Fake {
	if cfg.Info.Name == "" {
		cfg.Info.Name, cfg.Info.Version = "fake", "0"
		cfg.Info.CgroupVersion, cfg.Info.EnforcesLimits, cfg.Info.LimitsSwap = 2, true, true
		cfg.Info.GraphDriver, cfg.Info.MapsImages, cfg.Info.Seccomp = "overlay", true, true
	}
	if cfg.Program == nil {
		cfg.Program = fakeProbe
	}
	return &Fake{
		cfg: cfg, wake: make(chan struct{}),
		containers: map[string]*fakeContainer{}, images: map[string]*fakeImage{}, offers: map[string]Offer{},
	}
}

// Close kills all containers and waits for their programs.
func (f *Fake) Close() {
	f.mu.Lock()
	f.closed = true
	for _, c := range f.containers {
		c.die()
	}
	f.changed()
	f.mu.Unlock()
	f.running.Wait()
}

func (c *fakeContainer) die() {
	if c.kill != nil {
		c.killed = true
		c.kill()
	}
}

// changed wakes everyone who waits. The lock is held.
func (f *Fake) changed() {
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *Fake) fail(method string) error {
	if f.cfg.Fail == nil {
		return nil
	}
	return f.cfg.Fail(method)
}

// enter begins a call: the injected error, the context's, then the lock.
func (f *Fake) enter(ctx context.Context, method string) error {
	if err := f.fail(method); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	return nil
}

func fakeError(op string, kind error) error {
	return &engine.Error{Op: op, Message: kind.Error(), Kind: kind}
}

// find looks a container up by id or name. The lock is held.
func (f *Fake) find(op, id string) (*fakeContainer, error) {
	if c, ok := f.containers[id]; ok {
		return c, nil
	}
	for _, c := range f.containers {
		if c.Name == id {
			return c, nil
		}
	}
	return nil, fakeError(op+" container "+id, engine.ErrNotFound)
}

// Ping implements engine.Engine.
func (f *Fake) Ping(ctx context.Context) error {
	if err := f.enter(ctx, "Ping"); err != nil {
		return err
	}
	f.mu.Unlock()
	return nil
}

// Info implements engine.Engine.
func (f *Fake) Info(ctx context.Context) (engine.Info, error) {
	if err := f.enter(ctx, "Info"); err != nil {
		return engine.Info{}, err
	}
	f.mu.Unlock()
	return f.cfg.Info, nil
}

// Create implements engine.Containers.
func (f *Fake) Create(ctx context.Context, spec engine.ContainerSpec) (engine.Created, error) {
	if err := f.enter(ctx, "Create"); err != nil {
		return engine.Created{}, err
	}
	defer f.mu.Unlock()
	image, ok := f.image(spec.Image)
	if !ok {
		return engine.Created{}, fakeError("create container "+spec.Name, engine.ErrImageMissing)
	}
	if _, err := f.find("", spec.Name); err == nil && spec.Name != "" {
		return engine.Created{}, fakeError("create container "+spec.Name, engine.ErrConflict)
	}
	for _, m := range spec.Secrets {
		if !slices.ContainsFunc(f.secrets, func(s engine.Secret) bool { return s.ID == m.Secret || s.Name == m.Secret }) {
			return engine.Created{}, fakeError("create container "+spec.Name, engine.ErrSecretMissing)
		}
	}
	f.serial++
	id := fmt.Sprintf("%064x", f.serial)
	c := &fakeContainer{spec: spec, image: image, signals: make(chan string, 16)}
	c.Container = engine.Container{
		ID: id, Name: spec.Name, Image: spec.Image, ImageID: image.ID, ImageDigest: image.Digest,
		Labels: maps.Clone(spec.Labels), Created: time.Now(), State: engine.StateCreated,
		InForce: engine.InForce{
			MemoryBytes: spec.MemoryBytes, MemorySwapBytes: spec.MemoryBytes, NanoCPUs: spec.NanoCPUs,
			CPUShares: spec.CPUShares, PidsLimit: spec.PidsLimit, ReadOnlyRoot: spec.ReadOnlyRoot,
			NoNewPrivileges: spec.NoNewPrivileges, SeccompProfile: "default", Network: string(engine.NetworkNone),
			User: spec.User, Mounts: spec.Mounts, UIDs: spec.UserNS.UIDs, GIDs: spec.UserNS.GIDs,
		},
	}
	for _, name := range spec.CapAdd {
		c.InForce.Capabilities = append(c.InForce.Capabilities, "CAP_"+name)
	}
	c.InForce.BoundingSet = c.InForce.Capabilities
	if spec.Network != "" {
		c.InForce.Network = string(spec.Network)
	}
	if c.Name == "" {
		c.Name = "fake-" + strconv.Itoa(f.serial)
	}
	f.containers[id] = c
	f.event(c, "create")
	return engine.Created{ID: id}, nil
}

// event records what happened to c. The lock is held.
func (f *Fake) event(c *fakeContainer, action string) {
	e := engine.Event{Time: time.Now(), Action: action, ID: c.ID, Name: c.Name, Image: c.Image, Labels: maps.Clone(c.Labels)}
	if action == "died" {
		e.ExitCode = c.ExitCode
	}
	f.events = append(f.events, e)
	f.changed()
}

// fakeProbe behaves as the probe's modes exit, sleep and term.
func fakeProbe(ctx context.Context, p Process) int {
	argv := append(p.Spec.Command, "", "")
	if argv[1] == "exit" {
		n, _ := strconv.Atoi(argv[2])
		return n
	}
	fakeReady(p.Spec, argv[2])
	for {
		select {
		case <-ctx.Done():
			return 137
		case s := <-p.Signals:
			if s == "TERM" && argv[1] == "term" {
				return 0
			}
		}
	}
}
