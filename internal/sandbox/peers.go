package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli/internal/shim"
)

// caller says who may dial a sandbox's sockets: the container's root, as this
// process sees it.
func (m *Manager) caller(ctx context.Context, rec record) (shim.PeerRule, error) {
	if m.cfg.Container {
		// The engine's pids are another namespace's here.
		text, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			return shim.PeerRule{}, fmt.Errorf("who the sandbox's root is: %w", err)
		}
		own, err := parseIDMap(string(text))
		if err != nil {
			return shim.PeerRule{}, err
		}
		return own.caller(m.cfg.Info.Rootless, rec.UID)
	}
	if !m.cfg.Info.Rootless {
		// What the engine was told; had it not obeyed, its root would be another.
		return shim.PeerRule{UID: rec.IDBase}, nil
	}
	c, err := m.cfg.Engine.Inspect(ctx, containerName(rec.ID))
	if err != nil {
		return shim.PeerRule{}, err
	}
	if c.PID == 0 {
		return shim.PeerRule{}, fmt.Errorf("container %s doesn't run", c.Name)
	}
	uid, err := mappedRoot(c.PID)
	return shim.PeerRule{UID: uid}, err
}

// fromHost reports whether a path of this container's is on something that was
// mounted into it.
func (m *Manager) fromHost(path string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && mountOf(string(text), path) != "/"
}

// mountOf is the mount point, of those that mountinfo lists, that holds path.
func mountOf(mountinfo, path string) string {
	best := "/"
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if at := unescape.Replace(fields[4]); len(at) > len(best) && below(path, at) {
			best = at
		}
	}
	return best
}

// idMap is a user namespace's map, as a process in it reads it: ids inside,
// ids in the namespace above, how many.
type idMap [][3]uint32

func parseIDMap(text string) (idMap, error) {
	var out idMap
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("a user namespace's map says %q", line)
		}
		var row [3]uint32
		for i, f := range fields {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("a user namespace's map says %q", line)
			}
			row[i] = uint32(n)
		}
		out = append(out, row)
	}
	return out, nil
}

// inside is the id here of an id of the namespace above.
func (m idMap) inside(id uint32) (uint32, bool) {
	for _, row := range m {
		if id >= row[1] && id-row[1] < row[2] {
			return row[0] + (id - row[1]), true
		}
	}
	return 0, false
}

// has reports whether an id exists here.
func (m idMap) has(id uint32) bool {
	for _, row := range m {
		if id >= row[0] && id-row[0] < row[2] {
			return true
		}
	}
	return false
}

// caller is the rule for a server in a container with this map. agent is the
// agent's uid in the sandbox.
//
// A rootful engine's sandboxes have the host's ids. A rootless engine has a
// namespace of its own, in which the user is 0 and the subordinate ids begin
// with 1; keep-id makes the user the agent, and the first subordinate id the
// sandbox's root. The server's container lies in that namespace, or in one
// below it.
func (m idMap) caller(rootless bool, agent int) (shim.PeerRule, error) {
	root, other := uint32(0), uint32(max(agent, 0)) //nolint:gosec // a uid
	if rootless {
		root, other = 1, 0
	}
	see := m.inside
	if _, below := m.inside(0); rootless && !below {
		// The engine's own namespace: nothing here is the namespace above's 0.
		if _, some := m.inside(1); !some {
			see = func(id uint32) (uint32, bool) { return id, m.has(id) }
		}
	}
	if uid, known := see(root); known {
		return shim.PeerRule{UID: uid}, nil
	}
	if uid, known := see(other); known {
		return shim.PeerRule{UID: uid, Not: true}, nil
	}
	return shim.PeerRule{}, errors.New("the server's container has a user namespace in which a sandbox's root can't be told from its agent: " +
		"run it with --userns=keep-id (rootless) or --userns=host")
}
