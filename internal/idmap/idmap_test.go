package idmap

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestExtents: a map is a permutation of all ids that moves the pair and
// nothing else.
func TestExtents(t *testing.T) {
	for _, p := range []Pair{{1000, 2_000_001_000}, {2_000_001_000, 1000}, {1, 2}, {1, math.MaxUint32 - 1}, {7, 7}, {65535, 65536}} {
		next := 0
		seen := func(id uint32) int { // through the mount
			for _, m := range p.extents() {
				if int(id) >= m.ContainerID && int(id) < m.ContainerID+m.Size {
					return m.HostID + int(id) - m.ContainerID
				}
			}
			return -1
		}
		for _, m := range p.extents() {
			if m.ContainerID != next {
				t.Errorf("%v: %+v has a gap before %d", p, p.extents(), m.ContainerID)
			}
			next = m.ContainerID + m.Size
		}
		if next != math.MaxUint32 {
			t.Errorf("%v ends at %d", p, next)
		}
		for disk, want := range map[uint32]uint32{
			0: 0, p.Disk: p.Host, p.Host: p.Disk, 65534: 65534, 4_000_000_000: 4_000_000_000,
		} {
			if got := seen(disk); got != int(want) {
				t.Errorf("%v: %d is seen as %d, want %d", p, disk, got, want)
			}
		}
	}
}

// needRoot skips what needs mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func namespace(t *testing.T, uid, gid Pair) *os.File {
	t.Helper()
	began := time.Now()
	ns, err := Namespace(uid, gid)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a namespace took %v", time.Since(began))
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint32{st.Uid, st.Gid}
}

// TestMount: owners change places in both directions, others and root stay,
// and setuid bits and devices have no effect.
func TestMount(t *testing.T) {
	needRoot(t)
	source, target := t.TempDir(), t.TempDir()
	t.Cleanup(func() { // before the directories are removed
		if err := UnmountBelow(target); err != nil {
			t.Error(err)
		}
	})
	for name, id := range map[string]int{"agent": 1001, "root": 0, "other": 1234} {
		path := filepath.Join(source, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, id, id)); err != nil {
			t.Fatal(err)
		}
	}
	const uid, gid = 2_100_001_001, 2_100_000_007
	ns := namespace(t, Pair{1001, uid}, Pair{1001, gid})
	if err := Check(source, ns); err != nil {
		t.Fatal(err)
	}
	if mounts, err := Below(target); len(mounts) != 0 || err != nil {
		t.Fatalf("Check left %v, %v", mounts, err)
	}
	began := time.Now()
	if err := Mount(source, target, ns); err != nil {
		t.Fatal(err)
	}
	t.Logf("a mount took %v", time.Since(began))
	for name, want := range map[string][2]uint32{"agent": {uid, gid}, "root": {0, 0}, "other": {1234, 1234}} {
		if got := owner(t, filepath.Join(target, name)); got != want {
			t.Errorf("%s seen through the mount belongs to %v, want %v", name, got, want)
		}
		if got := owner(t, filepath.Join(source, name)); name == "agent" && got != [2]uint32{1001, 1001} {
			t.Errorf("on the disk it belongs to %v", got)
		}
	}
	made := filepath.Join(target, "made")
	if err := errors.Join(os.WriteFile(made, nil, 0o600), os.Chown(made, uid, gid)); err != nil {
		t.Fatal(err)
	}
	if got := owner(t, filepath.Join(source, "made")); got != [2]uint32{1001, 1001} {
		t.Errorf("what the mapped owner has made belongs on the disk to %v", got)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("the mount's flags: %#x, %v", st.Flags, err)
	}
	if mounts, err := Below(target); !slices.Equal(mounts, []string{target}) || err != nil {
		t.Errorf("mounts: %v, %v", mounts, err)
	}
	if err := UnmountBelow(target); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(target); err != nil || len(left) != 0 {
		t.Errorf("left in the mount point: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(source, "agent")); err != nil {
		t.Error(err)
	}
}

// TestMountRecursive: what is mounted below a source comes along, and one that
// can't be mapped refuses the whole.
func TestMountRecursive(t *testing.T) {
	needRoot(t)
	source, target := t.TempDir(), t.TempDir()
	inner := filepath.Join(source, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(UnmountBelow(target), UnmountBelow(source)); err != nil {
			t.Error(err)
		}
	})
	ns := namespace(t, Pair{1001, 2_100_001_001}, Pair{1001, 2_100_001_001})
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, "uid=1001,gid=1001"); err != nil {
		t.Fatal(err)
	}
	if err := Mount(source, target, ns); err != nil {
		t.Fatal(err)
	}
	if got := owner(t, filepath.Join(target, "inner")); got[0] != 2_100_001_001 {
		t.Errorf("the mount within belongs to %v", got)
	}
	if mounts, err := Below(target); len(mounts) != 2 || err != nil || mounts[1] != target {
		t.Errorf("not innermost first: %v, %v", mounts, err)
	}
	if err := UnmountBelow(target); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", inner, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := Mount(source, target, ns); !errors.Is(err, ErrUnsupported) {
		t.Errorf("with a proc inside: %v", err)
	}
	if mounts, err := Below(target); len(mounts) != 0 || err != nil {
		t.Errorf("a refused mount left %v, %v", mounts, err)
	}
}

func TestNeverRoot(t *testing.T) {
	for _, p := range []Pair{{0, 5}, {5, 0}, {0, 0}} {
		if ns, err := Namespace(p, Pair{1, 2}); err == nil {
			_ = ns.Close()
			t.Errorf("uid %v was mapped", p)
		}
		if ns, err := Namespace(Pair{1, 2}, p); err == nil {
			_ = ns.Close()
			t.Errorf("gid %v was mapped", p)
		}
	}
}

func TestBelow(t *testing.T) {
	const info = "1 0 0:1 / / rw - ext4 x rw\n2 1 8:1 / /a rw - x x rw\n3 2 8:1 / /a/my\\040b rw - x x rw\n4 1 8:1 / /ab rw - x x rw\nshort\n5 3 8:1 / /a/my\\040b rw - x x rw\n"
	for dir, want := range map[string][]string{
		"/a": {"/a/my b", "/a/my b", "/a"}, "/a/my b": {"/a/my b", "/a/my b"}, "/a/my": nil, "/ab": {"/ab"}, "/c": nil,
		"/": {"/a/my b", "/ab", "/a/my b", "/a", "/"},
	} {
		if got := below(info, dir); !slices.Equal(got, want) {
			t.Errorf("below %s: %v, want %v", dir, got, want)
		}
	}
	if got, err := Below(filepath.Join(t.TempDir(), "missing")); got != nil || err != nil {
		t.Errorf("below what is missing: %v, %v", got, err)
	}
}

func TestSameMounts(t *testing.T) {
	if same, err := SameMounts(os.Getpid()); !same || err != nil {
		t.Errorf("this process has not its own mounts: %v, %v", same, err)
	}
	if same, err := SameMounts(1 << 30); same || err == nil {
		t.Errorf("no process has this one's mounts: %v, %v", same, err)
	}
}
