// Package engine says what Stromboli wants from a container engine: containers
// and images, and nothing of runs, sessions or agents.
//
// It owns the interface, its types and its errors. Implementations promise
// that an error of theirs carries the engine's own message, that it matches one
// of this package's kinds by errors.Is where one fits, and that no call outlives
// its context. They refuse to guess: what an engine can't enforce is said in
// Info, never silently left out.
//
// Package podman implements it for Podman; enginetest has a fake and the
// conformance suite that both pass.
package engine

import (
	"context"
	"io"
	"iter"
	"time"
)

// Engine is a container engine. All methods may be called concurrently; each
// has a deadline of its own beside the context's, except Wait, Events and
// ImagePull, which block as long as the context lets them.
//
// Where an id is asked for, a name does as well.
type Engine interface {
	Containers
	Images
	Secrets

	// Ping reports whether the engine answers: nil or an error that is
	// ErrUnavailable. It is cheap.
	Ping(ctx context.Context) error
	// Info says what the engine is and what it can enforce. It may take half a
	// second, or be a minute old; don't use it to see whether the engine is up.
	Info(ctx context.Context) (Info, error)
	// Events follows what happens to containers, from filter.Since on, until
	// ctx ends or the stream breaks; then it yields one last error, which is
	// ErrUnavailable when the engine went away.
	Events(ctx context.Context, filter EventFilter) iter.Seq2[Event, error]
}

// Containers is the part of an engine that runs containers.
type Containers interface {
	// Create makes a container without starting it. It is durable on return.
	// A caller whose context ends in mid-call can't know whether the container
	// exists: Remove by the name it chose settles that. A missing image is
	// ErrImageMissing, a name in use ErrConflict.
	Create(ctx context.Context, spec ContainerSpec) (Created, error)
	// Start starts a container that was created, or one that has ended: that begins
	// anew, with its root file system as it was. The sources of its mounts must be
	// there each time. One that runs already is a success. A command that the image doesn't have is an error here, not at Create.
	Start(ctx context.Context, id string) error
	// Inspect reads a container's state and what is in force for it.
	Inspect(ctx context.Context, id string) (Container, error)
	// Wait blocks until the container has ended and gives its exit code (128 +
	// the signal's number when a signal ended it). One that ended before is
	// answered at once. A container removed meanwhile is ErrNotFound.
	Wait(ctx context.Context, id string) (int, error)
	// Kill sends a signal ("KILL", "SIGTERM", …) to the container's first
	// process. A container that doesn't run is ErrConflict.
	Kill(ctx context.Context, id, signal string) error
	// Stop sends TERM and, after grace (whole seconds, rounded up), KILL. One that
	// has ended is a success.
	Stop(ctx context.Context, id string, grace time.Duration) error
	// Remove kills the container, if it runs, and deletes it with its anonymous
	// volumes. A missing one is a success. It retries while the engine is busy
	// with the container.
	Remove(ctx context.Context, id string) error
	// List gives all containers, ended ones included, that carry each of the
	// labels; a label with an empty value asks for its presence only. Fields of
	// Container beyond ID, Name, Image, State, PID, ExitCode, Labels, Created
	// and StartedAt are for Inspect.
	List(ctx context.Context, labels map[string]string) ([]Container, error)
	// StatPath looks at a path in a container, running or not. A missing path
	// is ErrNotFound.
	StatPath(ctx context.Context, id, path string) (PathStat, error)
	// ReadFile reads a regular file in a container, of at most limit bytes; a
	// longer one is ErrTooLarge, a missing one ErrNotFound.
	ReadFile(ctx context.Context, id, path string, limit int64) ([]byte, error)
	// Stats reads a running container's use of resources once.
	Stats(ctx context.Context, id string) (Stats, error)
}

// Images is the part of an engine that keeps images.
type Images interface {
	ImageExists(ctx context.Context, ref string) (bool, error)
	// ImageInspect describes an image; a missing one is ErrImageMissing.
	ImageInspect(ctx context.Context, ref string) (Image, error)
	ImageList(ctx context.Context) ([]Image, error)
	// ImageLoad reads a saved image archive and gives the loaded names.
	ImageLoad(ctx context.Context, archive io.Reader) ([]string, error)
	// ImageImport makes an image of a root file system's tar and gives its id.
	ImageImport(ctx context.Context, rootfs io.Reader, ref string) (string, error)
	// ImageRemove takes a name from an image, and the image with its last
	// name. A missing one is a success; one in use is ErrConflict.
	ImageRemove(ctx context.Context, ref string) error
	// ImagePull fetches an image from its registry and gives its id. progress, if
	// not nil, is called now and then by this goroutine. What the registry
	// doesn't have is ErrImageMissing, what it doesn't give to this login
	// ErrDenied, any other fault on the way ErrRegistry. A pull that was cut off,
	// also by ctx, leaves no image behind.
	ImagePull(ctx context.Context, p Pull, progress func(PullProgress)) (string, error)
	// ImageSearch asks registries for images. A registry that fails is ErrRegistry.
	ImageSearch(ctx context.Context, s Search) ([]FoundImage, error)
}
