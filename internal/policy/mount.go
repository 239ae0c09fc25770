package policy

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// Mount is one volume: a path of the host at a path of the sandbox, both
// absolute and clean. Symlinks have not been looked at.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
	NoExec   bool   // programs in it can't be executed
	Label    string // z or Z: the SELinux label that was asked for, or empty

	// Field is the request's field that asked for it, for messages.
	Field string
	// Within is the target of the mount in which this one's target lies, or
	// empty. The engine would make a missing directory there, in the user's
	// tree and as root, so the sandbox has to find it before.
	Within string
}

// reserved are the places of the sandbox that are the server's or the
// kernel's: no volume at, above or below them.
func reserved() []string {
	return []string{
		"/run/stromboli", "/opt/stromboli", "/proc", "/sys", "/dev",
		"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf",
	}
}

// whole are directories that a volume must not replace as a whole; below them
// it may lie.
func whole() []string {
	return []string{
		"/", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/tmp",
	}
}

// ParseVolume reads "host:container[:options]"; parseOptions has the options. It
// judges the form alone. The error is a sentence for the caller.
func ParseVolume(s string) (Mount, error) {
	if len(s) > 3*maxPath {
		return Mount{}, fmt.Errorf("is longer than %d bytes", 3*maxPath)
	}
	if strings.ContainsFunc(s, notPrintable) {
		return Mount{}, fmt.Errorf("%s holds a control character", quote(s))
	}
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return Mount{}, fmt.Errorf("%s is not host:container or host:container:options", quote(s))
	}
	var m Mount
	var err error
	if m.Source, err = cleanPath("the host's path", parts[0]); err != nil {
		return Mount{}, err
	}
	if m.Target, err = cleanPath("the container's path", parts[1]); err != nil {
		return Mount{}, err
	}
	if len(parts) == 3 {
		if err := m.parseOptions(parts[2]); err != nil {
			return Mount{}, err
		}
	}
	return m, nil
}

// parseOptions reads options separated by commas. nosuid and nodev say what
// holds for every volume, so they change nothing.
func (m *Mount) parseOptions(s string) error {
	var rw bool
	for _, o := range strings.Split(s, ",") {
		switch o {
		case "ro":
			m.ReadOnly = true
		case "rw":
			rw = true
		case "noexec":
			m.NoExec = true
		case "nosuid", "nodev":
		case "z", "Z":
			if m.Label != "" && m.Label != o {
				return errors.New("the options z and Z exclude each other")
			}
			m.Label = o
		default:
			return fmt.Errorf("the option %s is unknown or not allowed; options are ro, rw, noexec, nosuid, nodev, z and Z", quote(o))
		}
	}
	if m.ReadOnly && rw {
		return errors.New("the options ro and rw exclude each other")
	}
	return nil
}

// cleanPath checks an absolute path and cleans it. ".." is refused rather than
// resolved: where symlinks are, it doesn't mean what it seems to.
func cleanPath(what, p string) (string, error) {
	switch {
	case p == "":
		return "", fmt.Errorf("%s is empty", what)
	case len(p) > maxPath:
		return "", fmt.Errorf("%s is longer than %d bytes", what, maxPath)
	case strings.ContainsFunc(p, notPrintable):
		return "", fmt.Errorf("%s %s holds a control character", what, quote(p))
	case !strings.HasPrefix(p, "/"):
		return "", fmt.Errorf("%s %s is not absolute", what, quote(p))
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "", fmt.Errorf("%s %s holds \"..\"", what, quote(p))
	case slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool { return len(name) > maxName }):
		return "", fmt.Errorf("%s holds a name of more than %d bytes, which no directory can have", what, maxName)
	}
	return path.Clean(p), nil
}

func notPrintable(r rune) bool {
	return unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029'
}

// workdir checks the agent's working directory.
func workdir(p string) (string, error) {
	const field = "workdir"
	if p == "" {
		return DefaultWorkdir, nil
	}
	dir, err := cleanPath("the path", p)
	if err != nil {
		return "", stromboli.FieldError(field, "%v", err)
	}
	for _, r := range reserved() {
		if within(dir, r) {
			return "", stromboli.FieldError(field, "%s is the sandbox's own", quote(dir))
		}
	}
	return dir, nil
}

// mounts fills in the volumes. named: the request names the working directory,
// which may then be one of the host's.
func (p *Plan) mounts(volumes []string, named bool, c Config) error {
	p.WorkdirMount = -1
	if len(volumes) > maxVolumes {
		return stromboli.FieldError("podman.volumes", "has %d entries, at most %d are possible", len(volumes), maxVolumes)
	}
	targets := make(map[string]bool, len(volumes))
	for i, v := range volumes {
		field := fmt.Sprintf("podman.volumes[%d]", i)
		m, err := ParseVolume(v)
		if err != nil {
			return stromboli.FieldError(field, "%v", err)
		}
		if err := c.checkSource(m.Source); err != nil {
			return stromboli.FieldError(field, "%v", err)
		}
		if err := c.checkTarget(m.Target); err != nil {
			return stromboli.FieldError(field, "%v", err)
		}
		if targets[m.Target] {
			return stromboli.FieldError(field, "another volume is mounted at %s too", quote(m.Target))
		}
		targets[m.Target] = true
		m.Field = field
		p.Mounts = append(p.Mounts, m)
	}
	for i := range p.Mounts {
		p.Mounts[i].Within = covering(path.Dir(p.Mounts[i].Target), targets)
	}
	if over := covering(p.Workdir, targets); over != "" {
		p.WorkdirMount = slices.IndexFunc(p.Mounts, func(m Mount) bool { return m.Target == over })
	} else if named && c.checkSource(p.Workdir) == nil && c.checkTarget(p.Workdir) == nil {
		p.HostWorkdir = &Mount{Source: p.Workdir, Target: p.Workdir, Field: "workdir"}
	}
	return nil
}

// covering is the deepest of the targets at or above p, or empty.
func covering(p string, targets map[string]bool) string {
	for ; p != "/"; p = path.Dir(p) {
		if targets[p] {
			return p
		}
	}
	return ""
}

// checkSource judges a path of the host that is to be mounted, by its name;
// where symlinks lead is judged by whoever can follow them. The error is a
// sentence for the caller.
func (c Config) checkSource(source string) error {
	if err := c.allowed(source); err != nil {
		return err
	}
	for _, p := range c.Protected {
		if within(source, p) || within(p, source) {
			return fmt.Errorf("%s is refused: it holds the server's own files or is one of them", quote(source))
		}
	}
	return nil
}

func (c Config) allowed(source string) error {
	if c.AllowAllVolumes {
		return nil
	}
	if len(c.AllowedVolumes) == 0 {
		return errors.New("volumes are not allowed on this server; STROMBOLI_AGENT_ALLOWED_VOLUMES names the directories below which they may lie")
	}
	for _, root := range c.AllowedVolumes {
		if within(source, path.Clean(root)) {
			return nil
		}
	}
	return fmt.Errorf("%s is not below a directory that STROMBOLI_AGENT_ALLOWED_VOLUMES names", quote(source))
}

func (c Config) checkTarget(target string) error {
	own := reserved()
	if c.Home != "" {
		own = append(own, c.Home)
	}
	for _, r := range own {
		if within(target, r) || within(r, target) {
			return fmt.Errorf("the container's path %s is refused: it is at, above or below %s, which is the sandbox's own", quote(target), r)
		}
	}
	if slices.Contains(whole(), target) {
		return fmt.Errorf("the container's path %s is refused: it would replace that directory of the image as a whole", quote(target))
	}
	return nil
}

// within reports whether the clean path p is dir or lies below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
