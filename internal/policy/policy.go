package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// Bounds of a request.
const (
	maxMetadata      = 32
	maxMetadataKey   = 64
	maxMetadataValue = 1024
	maxVolumes       = 1000
	maxPath          = 1024
	maxName          = 255 // of a file, on every file system of Linux
	maxImage         = 512
	longestTimeout   = 30 * 24 * time.Hour
)

// Bounds of CPUShares, as the kernel and engines have them.
const (
	MinCPUShares = 2
	MaxCPUShares = 262144
)

// DefaultWorkdir is where an agent works when the request doesn't say.
const DefaultWorkdir = "/workspace"

// Config is what the operator allows and what requests that don't say get.
type Config struct {
	// Image is the agent image.
	Image string
	// ImagePatterns are the images that runs may use beside it; none: every one
	// that is on this machine.
	ImagePatterns ImagePatterns
	// Memory in bytes, NanoCPUs (billionths of a CPU) and Timeout are what a
	// run gets that names none.
	Memory   int64
	NanoCPUs int64
	Timeout  time.Duration

	// MaxMemory, MaxNanoCPUs, MaxCPUShares and MaxTimeout are the most that a run
	// gets; 0: no maximum. What runs get that don't say is within them.
	MaxMemory    int64
	MaxNanoCPUs  int64
	MaxCPUShares int64
	MaxTimeout   time.Duration

	// AllowedVolumes are the host directories at or below which volumes may
	// lie, cleaned absolute paths; none: no volumes. AllowAllVolumes lifts that.
	EngineSecrets   SecretPatterns // which of the engine's secrets runs may name
	AllowedVolumes  []string
	AllowAllVolumes bool
	// Protected are host paths that no volume may contain or lie in: the data
	// directory, the engine's socket.
	Protected []string

	// Network is what sandboxes may reach at most.
	Network NetworkConfig

	// ModelHosts are the model's, which no request may bind a secret to.
	ModelHosts []string

	// Webhooks are hosts that webhooks may be sent to though they aren't public.
	Webhooks Hosts

	// Home is the agent's home in the sandbox; volumes stay away from it.
	Home string
}

// Plan is a request with every default filled in: what the sandbox is made
// from.
type Plan struct {
	Prompt  string
	Workdir string // absolute and clean
	Image   string

	// Mounts are the volumes in the request's order. WorkdirMount is the index
	// of the one that covers Workdir, or -1.
	Mounts       []Mount
	WorkdirMount int
	// HostWorkdir, if set, is the volume by which a directory of the host that
	// Workdir names would be mounted at the same path. Whether there is one is
	// for others to find out.
	HostWorkdir *Mount

	Network stromboli.Network // complete

	MemoryBytes int64
	NanoCPUs    int64
	CPUShares   int64 // 0: the engine's default

	// ClaudeTimeout counts from the first message; 0: none of its own.
	// SandboxTimeout counts from the sandbox's creation and is always set. The
	// earlier ends the run.
	ClaudeTimeout  time.Duration
	SandboxTimeout time.Duration

	// HooksTimeout bounds the hooks.
	HooksTimeout time.Duration

	// Warnings tell what the request didn't get as it asked.
	Warnings []stromboli.Warning
}

// Check judges a request and fills in its defaults. The agent's own options,
// save for their timeout, and the prompt's length are for others to judge. An error is a
// stromboli.Error; those about the request name the field.
func Check(spec stromboli.RunSpec, c Config) (Plan, error) {
	p := Plan{Prompt: spec.Prompt, MemoryBytes: c.Memory, NanoCPUs: c.NanoCPUs}
	for _, check := range []func() error{
		func() error { return checkPrompt(spec.Prompt) },
		func() error { return checkOnDisconnect(spec.OnDisconnect) },
		func() error { return checkMetadata(spec.Metadata) },
		func() (err error) { p.Workdir, err = workdir(spec.Workdir); return err },
		func() (err error) { p.Image, err = image(spec.Podman.Image, c.Image); return err },
		func() error { return p.limits(spec.Podman) },
		func() error { return p.timeouts(spec, c.Timeout) },
		func() error { p.clamp(spec, c); return nil },
		func() error { return checkWait(spec.BackgroundWait) },
		func() (err error) { p.HooksTimeout, err = hooks(spec.Podman.Lifecycle); return err },
		func() error { return p.mounts(spec.Podman.Volumes, spec.Workdir != "", c) },
		func() (err error) { p.Network, err = c.Network.Network(spec.Network); return err },
		func() error { return bindings(spec.Bindings, p.Network, c) },
	} {
		if err := check(); err != nil {
			return Plan{}, err
		}
	}
	return p, nil
}

func checkPrompt(prompt string) error {
	switch {
	case strings.TrimSpace(prompt) == "":
		return stromboli.FieldError("prompt", "is required and must not be blank")
	case !utf8.ValidString(prompt):
		return stromboli.FieldError("prompt", "is not valid UTF-8")
	}
	return nil
}

func checkOnDisconnect(v stromboli.OnDisconnect) error {
	switch v {
	case "", stromboli.OnDisconnectContinue, stromboli.OnDisconnectCancel:
		return nil
	}
	return stromboli.FieldError("on_disconnect", "%s is unknown; it is one of continue, cancel", quote(string(v)))
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return stromboli.FieldError("metadata", "has %d entries, at most %d are possible", len(m), maxMetadata)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		value := m[key]
		switch {
		case key == "" || len(key) > maxMetadataKey:
			return stromboli.FieldError("metadata", "the key %s must have 1 to %d bytes", quote(key), maxMetadataKey)
		case strings.ContainsFunc(key, notPrintable) || strings.Contains(key, " "):
			return stromboli.FieldError("metadata", "the key %s holds a space or a control character", quote(key))
		case len(value) > maxMetadataValue:
			return stromboli.FieldError("metadata."+key, "is %d bytes long, at most %d are possible", len(value), maxMetadataValue)
		case !utf8.ValidString(value) || strings.Contains(value, "\x00"):
			return stromboli.FieldError("metadata."+key, "is not valid text")
		}
	}
	return nil
}

// image checks an image's name lexically; whether it is there and may be used
// is found out later.
func image(name, byDefault string) (string, error) {
	const field = "podman.image"
	if name == "" {
		return byDefault, nil
	}
	if len(name) > maxImage {
		return "", stromboli.FieldError(field, "is longer than %d bytes", maxImage)
	}
	if strings.HasPrefix(name, "-") {
		return "", stromboli.FieldError(field, "must not begin with a dash")
	}
	for _, part := range strings.Split(name, "/") {
		if part == "" || part == "." || part == ".." {
			return "", stromboli.FieldError(field, "%s is not an image's name", quote(name))
		}
	}
	for _, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && !strings.ContainsRune("._-/:@+", r) {
			return "", stromboli.FieldError(field, "%s is not an image's name", quote(name))
		}
	}
	return name, nil
}

func (p *Plan) limits(o stromboli.PodmanOptions) error {
	if o.Memory != "" {
		n, err := ParseSize(o.Memory)
		if err != nil {
			return stromboli.FieldError("podman.memory", "%v", err)
		}
		if n < MinMemory || n > MaxMemory {
			return stromboli.FieldError("podman.memory", "%s is out of range; it must be between 32m and 16t", quote(o.Memory))
		}
		p.MemoryBytes = n
	}
	if o.CPUs != "" {
		n, err := ParseCPUs(o.CPUs)
		if err != nil {
			return stromboli.FieldError("podman.cpus", "%v", err)
		}
		p.NanoCPUs = n
	}
	if s := o.CPUShares; s != nil {
		if *s < MinCPUShares || *s > MaxCPUShares {
			return stromboli.FieldError("podman.cpu_shares", "is %d, it must be between %d and %d", *s, MinCPUShares, MaxCPUShares)
		}
		p.CPUShares = int64(*s)
	}
	return nil
}

// timeouts: where only claude.timeout is given, the sandbox's limit gives way
// to it, so that a caller who asks for two hours gets them.
func (p *Plan) timeouts(spec stromboli.RunSpec, byDefault time.Duration) error {
	agent, err := timeout("claude.timeout", spec.Claude.Timeout)
	if err != nil {
		return err
	}
	sandbox, err := timeout("podman.timeout", spec.Podman.Timeout)
	if err != nil {
		return err
	}
	p.ClaudeTimeout, p.SandboxTimeout = agent, sandbox
	if sandbox == 0 {
		p.SandboxTimeout = byDefault
		if agent >= byDefault {
			p.SandboxTimeout = agent + byDefault
		}
	}
	return nil
}

func checkWait(d *stromboli.Duration) error {
	if d == nil {
		return nil
	}
	_, err := timeout("background_wait", *d)
	return err
}

func timeout(field string, d stromboli.Duration) (time.Duration, error) {
	v := time.Duration(d)
	if v < 0 {
		return 0, stromboli.FieldError(field, "%s is negative", v)
	}
	if v > longestTimeout {
		return 0, stromboli.FieldError(field, "%s is too long; at most %s are possible", v, longestTimeout)
	}
	return v, nil
}

// quote shows a caller's value in a message, shortened and on one line.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(s[:limit], ""))
	}
	return fmt.Sprintf("%q", s)
}
