package sandbox

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/idmap"
)

// How a sandbox's ids relate to the host's.
const (
	// UserNSAuto: every id of the sandbox is a host's id that nobody else has.
	// What the agent may write into is mounted so that the files belong to
	// whom they should on the disk.
	UserNSAuto = "auto"
	// UserNSKeepID: the agent is the user whom the rootless engine belongs to,
	// and every other id is a subordinate one of that user's.
	UserNSKeepID = "keep-id"
	// UserNSNone: the sandbox's ids are the host's.
	UserNSNone = "none"
)

// UserNS says how the sandboxes of this host get their ids, at best, and why
// not better where that isn't UserNSAuto.
type UserNS struct{ Mode, Why string }

// UserNS is what FindUserNS found for this Manager, when first asked.
func (m *Manager) UserNS() UserNS {
	m.userNSOnce.Do(func() { m.userNS = FindUserNS(m.cfg) })
	return m.userNS
}

// FindUserNS finds out what this host can, from c's Info, UserNS, Container,
// SameMounts and Sessions. It changes nothing.
func FindUserNS(c Config) UserNS {
	why := ""
	switch {
	case c.Info.Rootless:
		return UserNS{UserNSKeepID, "the engine is an ordinary user's"}
	case !c.UserNS:
		why = "switched off by STROMBOLI_SANDBOX_USERNS"
	case !c.Info.MapsImages:
		why = "the engine would copy the whole image for each sandbox (it takes the storage driver overlay without a mount program, and Linux 5.19)"
	case userNamespacesOff():
		why = "user namespaces are switched off (/proc/sys/user/max_user_namespaces is 0)"
	case c.Container:
		why = "the server is in a container, where it can't mount for the engine"
	case !ownsRanges("/proc/self/uid_map", "/proc/self/gid_map"):
		why = "this machine is a container itself and lacks the ids that sandboxes would get"
	case os.Geteuid() != 0:
		why = "the server isn't root, and can't mount"
	case !c.SameMounts:
		why = "the engine's service has another mount namespace than the server, and would not see what that mounts"
	default:
		if err := mayMap(c.Sessions); err != nil {
			why = err.Error()
		}
	}
	if why != "" {
		return UserNS{UserNSNone, why}
	}
	return UserNS{Mode: UserNSAuto}
}

func userNamespacesOff() bool {
	text, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

// ownsRanges reports whether the maps of this process's own user namespace have
// the sandboxes' ids.
func ownsRanges(maps ...string) bool {
	for _, file := range maps {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		if own, err := parseIDMap(string(text)); err != nil || !own.has(firstID) || !own.has(firstID+ranges*rangeSize-1) {
			return false
		}
	}
	return true
}

// mayMap tries an id-mapped mount of a directory, or of what it will be made in.
func mayMap(dir string) error {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	pair := idmap.Pair{Disk: agentUID, Host: firstID + agentUID}
	ns, err := idmap.Namespace(pair, pair)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return idmap.Check(dir, ns)
}

// Sandboxes' ids lie above what directory services give to people by default
// (sssd ends at 2,000,200,000) and below those that container engines are
// commonly given (from 2,147,483,647 on) and that systemd has uses for (from
// 0x7FFE0000 on). So no list has to be edited, and no other program's ranges
// begin there.
const (
	firstID   = 0x77390000
	rangeSize = 1 << 16
	ranges    = (0x7FFE0000 - firstID) / rangeSize
)

// namespace is what the engine is asked for. The map is one piece: the storage
// of Podman 4.3 can't mount an image through another, and that of later ones
// copies the image for it.
func (rec *record) namespace(rootless bool) engine.UserNS {
	switch {
	case rootless:
		return engine.UserNS{KeepID: true, UID: rec.UID, GID: rec.GID}
	case rec.UserNS == UserNSAuto:
		all := []engine.IDRange{{Container: 0, Host: rec.IDBase, Size: rangeSize}}
		return engine.UserNS{UIDs: all, GIDs: all}
	}
	return engine.UserNS{}
}

// giveIDs chooses a range for a sandbox, which has it until it is discarded.
func (m *Manager) giveIDs(rec *record) error {
	best := m.UserNS()
	rec.UserNS, rec.UserNSWhy = best.Mode, best.Why
	if best.Mode != UserNSAuto {
		return nil
	}
	if max(rec.UID, rec.GID) >= rangeSize {
		rec.UserNS, rec.UserNSWhy = UserNSNone, fmt.Sprintf("the workspace belongs to %d:%d, and a sandbox of its own ids has those below %d", rec.UID, rec.GID, rangeSize)
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := make(map[uint32]bool, len(m.bases))
	for _, base := range m.bases {
		taken[base] = true
	}
	// Another server on this host begins elsewhere.
	h := fnv.New32a()
	_, _ = h.Write([]byte(m.cfg.Instance)) // a hash never fails to write
	first := h.Sum32() % ranges
	for i := range uint32(ranges) {
		base := firstID + (first+i)%ranges*rangeSize
		if taken[base] || m.reserved.holds(base) {
			continue
		}
		rec.IDBase, m.bases[rec.ID] = base, base
		return nil
	}
	return errors.New("no range of ids is left for a sandbox: all are taken, or given to others in /etc/subuid and /etc/subgid")
}

// rememberIDs marks the range of a sandbox that an earlier server made.
func (m *Manager) rememberIDs(rec record) {
	if rec.IDBase == 0 {
		return
	}
	m.mu.Lock()
	m.bases[rec.ID] = rec.IDBase
	m.mu.Unlock()
}

// subIDs are ids that this host's administrator gave to somebody.
type subIDs [][2]uint64

func readSubIDs(files ...string) subIDs {
	var out subIDs
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 {
				continue
			}
			first, err1 := strconv.ParseUint(f[1], 10, 32)
			size, err2 := strconv.ParseUint(f[2], 10, 32)
			if err1 == nil && err2 == nil {
				out = append(out, [2]uint64{first, first + size})
			}
		}
	}
	return out
}

// holds reports whether a part of the range at base is somebody's.
func (s subIDs) holds(base uint32) bool {
	for _, r := range s {
		if r[0] < uint64(base)+rangeSize && uint64(base) < r[1] {
			return true
		}
	}
	return false
}

// stage gives a sandbox what its agent writes into, seen by the agent's own
// ids: id-mapped mounts that exist only until unstage, since the started
// container has its own of them. Where one is not possible the sandbox gets
// the host's ids, and the record says why.
func (m *Manager) stage(rec *record, mounts []engine.Mount) error {
	if rec.UserNS != UserNSAuto {
		return nil
	}
	staged := make([]string, len(mounts))
	for i, mount := range mounts {
		staged[i] = filepath.Join(m.stageDir(rec.ID), strconv.Itoa(i))
		err := m.mapMount(*rec, mount.Source, staged[i])
		if errors.Is(err, idmap.ErrUnsupported) {
			m.log.Info("a sandbox has the host's ids", "sandbox", rec.ID, "run_id", rec.RunID, "why", err)
			rec.UserNS, rec.UserNSWhy, rec.IDBase = UserNSNone, err.Error(), 0
			return m.unstage(rec.ID)
		}
		if err != nil {
			return errors.Join(err, m.unstage(rec.ID))
		}
	}
	for i := range mounts {
		mounts[i].Source = staged[i]
	}
	return nil
}

func (m *Manager) mapMount(rec record, source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("mounting %s: %w", source, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return fmt.Errorf("making a mount point: %w", err)
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("making a mount point: %w", err)
	}
	uid, gid := uint32(rec.UID), uint32(rec.GID) //nolint:gosec // giveIDs has looked at them
	pairs := [2]idmap.Pair{{Disk: uid, Host: rec.IDBase + uid}, {Disk: gid, Host: rec.IDBase + gid}}
	return m.maps.with(pairs, func(ns *os.File) error { return idmap.Mount(source, target, ns) })
}

// stageDir holds a sandbox's mount points while it is started. It lies outside
// of all directories that anybody removes as trees.
func (m *Manager) stageDir(id string) string {
	return filepath.Join(m.cfg.StageDir, m.cfg.Instance+"."+id)
}

// unstage takes the mounts and their mount points away. Nothing is removed
// that isn't an empty directory or file of the mount points' own: what was
// mounted is never touched, whatever went wrong before.
func (m *Manager) unstage(id string) error {
	if os.Geteuid() != 0 {
		return nil // we have never mounted anything, and root's mount points are closed to us
	}
	dir := m.stageDir(id)
	if err := idmap.UnmountBelow(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing mount points: %w", err)
	}
	for _, e := range entries {
		// A mount point can't be removed, nor a directory with something in it.
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing mount points: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("removing mount points: %w", err)
	}
	return nil
}

// unstageAll takes away what a server's death left mounted.
func (m *Manager) unstageAll() error {
	if os.Geteuid() != 0 {
		return nil
	}
	entries, err := os.ReadDir(m.cfg.StageDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		if id, ours := strings.CutPrefix(e.Name(), m.cfg.Instance+"."); ours {
			errs = append(errs, m.unstage(id))
		}
	}
	return errors.Join(append(errs, err)...)
}
