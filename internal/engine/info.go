package engine

import "time"

// Info says what an engine is and what it can enforce.
type Info struct {
	Name          string // "podman"
	Version       string
	APIVersion    string
	OS            string
	Architecture  string
	Kernel        string
	Rootless      bool
	CgroupVersion int // 1 also on hybrid hierarchies
	CgroupManager string
	Controllers   []string // cgroup controllers that the engine may use
	GraphDriver   string   // storage driver, "overlay" or slower
	GraphRoot     string
	// MapsImages is true where a container with ids of its own shares its
	// image's layers with all others. Elsewhere the engine copies the image for
	// each range of ids.
	MapsImages bool
	OCIRuntime string
	SELinux    bool
	AppArmor   bool
	Seccomp    bool

	// EnforcesLimits is false where memory, CPU and process limits of a
	// container have no effect: rootless on cgroup v1, or controllers missing.
	EnforcesLimits bool
	// LimitsSwap is false where the kernel doesn't account swap: a container
	// may then use swap beyond its memory.
	LimitsSwap bool
	// Notes tell an operator what this engine lacks and what to do about it.
	Notes []string
}

// EventFilter says which events are wanted.
type EventFilter struct {
	Labels map[string]string // as for List
	Since  time.Time         // zero: from now on
}

// Event is something that happened to a container.
type Event struct {
	Time     time.Time
	Action   string // "create", "init", "start", "died", "remove", …
	ID       string
	Name     string
	Image    string
	Labels   map[string]string
	ExitCode int // on "died" only
}

// HasLabels reports whether labels have each wanted one, as List and Events
// take them: an empty value asks for the label's presence only.
func HasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || v != "" && got != v {
			return false
		}
	}
	return true
}
