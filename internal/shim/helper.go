package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A helper is this binary again, started as root to become the agent's user
// for good before it touches anything of the agent's. Changing its ids without
// an exec afterwards also makes it non-dumpable, so the agent, whose uid it
// has, can neither trace it nor look into it. Its request is its argument, its
// stdin and stdout are a file's bytes, its stderr says what went wrong.
const helperArg = "helper"

// helperMain is the helper's life; it returns the exit code.
func helperMain(args []string, in io.Reader, out, errOut io.Writer) int {
	err := runHelper(args, in, out)
	if err == nil {
		return 0
	}
	b, _ := json.Marshal(remoteOf(err)) // two strings can't fail
	_, _ = errOut.Write(b)
	return 1
}

func runHelper(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return remotef(CodeInvalid, "helper: want an operation and a request")
	}
	var req fileRequest
	// Targets may be too many for an argument.
	if args[1] == "-" {
		if err := json.NewDecoder(io.LimitReader(in, maxFrame)).Decode(&req); err != nil {
			return fmt.Errorf("helper request: %w", err)
		}
	} else if err := json.Unmarshal([]byte(args[1]), &req); err != nil {
		return fmt.Errorf("helper request: %w", err)
	}
	if err := checkIDs(req.UID, req.GID); err != nil {
		return err
	}
	switch { // these begin as root
	case op(args[0]) == opMounts:
		return statTargets(req, out)
	case op(args[0]) == opAttest:
		return attest(req, out)
	}
	if err := become(req.UID, req.GID); err != nil {
		return err
	}
	switch op(args[0]) {
	case opWriteFile:
		return writeFile(req, in)
	case opReadFile:
		return readFile(req, out)
	case opMakeDir:
		return makeDir(req)
	case opKill:
		if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill: %w", err)
		}
		return nil
	default:
		return remotef(CodeInvalid, "helper: unknown operation %q", args[0])
	}
}

// opKill is an operation of helpers only.
const opKill op = "kill"

// become makes the whole process uid and gid, with no way back.
func become(uid, gid int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("become %d:%d: setgroups: %w", uid, gid, err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("become %d:%d: setresgid: %w", uid, gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("become %d:%d: setresuid: %w", uid, gid, err)
	}
	// The kernel has done this by now; where fs.suid_dumpable says otherwise
	// it has not.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become %d:%d: %w", uid, gid, err)
	}
	if syscall.Setresuid(-1, 0, -1) == nil {
		return fmt.Errorf("become %d:%d: could become root again", uid, gid)
	}
	return nil
}

// writeFile replaces the file by what comes in, whole or not at all. The
// input is chunks with a length before each; an empty one is the end, so that
// a cut input is never taken for a whole one.
func writeFile(req fileRequest, in io.Reader) (err error) {
	if !filepath.IsAbs(req.Path) {
		return remotef(CodeInvalid, "write %q: the path is not absolute", req.Path)
	}
	dir := filepath.Dir(req.Path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the agent's own directory
		return fmt.Errorf("write: %w", err)
	}
	f, err := os.CreateTemp(dir, ".stromboli-*")
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write: %w", errors.Join(err, f.Close(), os.Remove(f.Name())))
		}
	}()
	if err := copyChunks(f, in); err != nil {
		return err
	}
	if err := f.Chmod(fs.FileMode(req.Mode) & fs.ModePerm); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), req.Path); err != nil {
		return err
	}
	_ = f.Close() // synced already
	d, derr := os.Open(dir)
	if derr != nil {
		return nil // written, and not ours to read: no directory sync then
	}
	_ = d.Sync()
	_ = d.Close()
	return nil
}

func copyChunks(w io.Writer, in io.Reader) error {
	buf := make([]byte, fileChunk)
	for {
		var h [4]byte
		if _, err := io.ReadFull(in, h[:]); err != nil {
			return fmt.Errorf("input was cut: %w", err)
		}
		n := binary.BigEndian.Uint32(h[:])
		if n == 0 {
			return nil
		}
		if n > fileChunk {
			return remotef(CodeInvalid, "chunk of %d bytes", n)
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return fmt.Errorf("input was cut: %w", err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// makeDir makes a directory and its missing parents; one that is there is
// success.
func makeDir(req fileRequest) error {
	if !filepath.IsAbs(req.Path) {
		return remotef(CodeInvalid, "make %q: the path is not absolute", req.Path)
	}
	if err := os.MkdirAll(req.Path, 0o755); err != nil { //nolint:gosec // the agent's own directory
		return fmt.Errorf("make a directory: %w", err)
	}
	return nil
}

func readFile(req fileRequest, out io.Writer) error {
	if !filepath.IsAbs(req.Path) {
		return remotef(CodeInvalid, "read %q: the path is not absolute", req.Path)
	}
	// Without O_NONBLOCK a FIFO in the file's place would hold us for ever.
	f, err := os.OpenFile(req.Path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return remotef(CodeNotRegular, "read %s: not a regular file", req.Path)
	}
	n, err := io.Copy(out, io.LimitReader(f, req.Limit+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", req.Path, err)
	}
	if n > req.Limit {
		return remotef(CodeTooLarge, "read %s: larger than %d bytes", req.Path, req.Limit)
	}
	return nil
}

func statTargets(req fileRequest, out io.Writer) error {
	list, err := stats(req)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(list)
}

// stats looks at the targets as root first, since the agent may not be
// allowed to, and then, having become the agent, at those where root may not
// look.
func stats(req fileRequest) ([]MountStat, error) {
	stats := make([]MountStat, len(req.Targets))
	look := func() {
		for i, target := range req.Targets {
			var st unix.Stat_t
			s := MountStat{Target: target}
			if err := unix.Stat(target, &st); err != nil {
				s.Err = err.Error()
			} else {
				s.Dev, s.Ino = st.Dev, st.Ino
			}
			if stats[i].Ino == 0 {
				stats[i] = s
			}
		}
	}
	look()
	if err := become(req.UID, req.GID); err != nil {
		return nil, err
	}
	look()
	return stats, nil
}

// helperArgs is the command line of a helper.
func helperArgs(o op, req fileRequest) []string {
	arg := "-"
	if len(req.Targets) == 0 {
		b, _ := json.Marshal(req) // strings and numbers can't fail
		arg = string(b)
	}
	return []string{"/proc/self/exe", helperArg, string(o), arg}
}

// signalName is the name of a signal such as "SIGKILL".
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(sig))
}
