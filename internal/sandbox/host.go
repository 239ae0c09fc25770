package sandbox

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const errNoSpace = syscall.ENOSPC

// mappedRoot returns the uid on this host of uid 0 in a process's user
// namespace. The engine's own answer is relative to the calling user's map
// where it runs rootless, so the kernel is asked.
func mappedRoot(pid int) (uint32, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/uid_map")
	if err != nil {
		return 0, fmt.Errorf("who the sandbox's root is: %w", err)
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) != 3 || fields[0] != "0" {
			continue
		}
		uid, err := strconv.ParseUint(fields[1], 10, 32)
		return uint32(uid), err
	}
	return 0, fmt.Errorf("who the sandbox's root is: uid 0 is not mapped in process %d", pid)
}

// POSIX ACLs as the kernel stores them: a version, then entries of tag,
// permissions and id, little endian.
const (
	aclName    = "system.posix_acl_access"
	aclVersion = 2
	aclUserTag = 0x02
	aclMaskTag = 0x10
	aclWrite   = 0x02
)

// writersByACL returns the uids that a path's ACL lets write, the mask
// applied.
func writersByACL(path string) map[int]bool {
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, aclName, buf)
	if err != nil || n < 4 || binary.LittleEndian.Uint32(buf) != aclVersion {
		return nil
	}
	writers := make(map[int]bool)
	mask := uint16(aclWrite)
	for b := buf[4:n]; len(b) >= 8; b = b[8:] {
		tag, perm, id := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		switch tag {
		case aclUserTag:
			if perm&aclWrite != 0 {
				writers[int(id)] = true
			}
		case aclMaskTag:
			mask = perm
		}
	}
	if mask&aclWrite == 0 {
		return nil
	}
	return writers
}
