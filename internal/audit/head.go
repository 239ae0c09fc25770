package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Head names a record by its number and hash.
type Head struct {
	Seq  uint64
	Hash string // of nothing: 64 zeros
}

const noHash = "0000000000000000000000000000000000000000000000000000000000000000"

// headSize is that of the head's file: less than a disk's sector, so that it is
// written whole or not at all.
const headSize = 128

func headPath(path string) string { return path + ".head" }

// lockHead opens the head's file and takes its lock, which lasts as long as it
// is open. The file is never replaced.
func lockHead(path string) (*os.File, error) {
	f, err := os.OpenFile(headPath(path), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("locking: %w", err)
	}
	return f, nil
}

// write names the newest record. It is called once the record is on the disk; it is
// not synced itself, so that after a loss of power it may name an older one.
func (h Head) write(f *os.File) error {
	_, err := f.WriteAt(fmt.Appendf(nil, "%-*s\n", headSize-1, fmt.Sprintf("%d:%s", h.Seq, h.Hash)), 0)
	return err
}

var errHead = errors.New("the head's file is not one")

// readHead reads a head's file; one that is empty names nothing, not even the
// beginning: the zero Head.
func readHead(f io.ReaderAt) (Head, error) {
	b := make([]byte, headSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Head{}, err
	}
	if n == 0 {
		return Head{}, nil
	}
	return ParseHead(string(b[:n]))
}

// ParseHead reads a record's number and hash with a colon between them.
func ParseHead(s string) (Head, error) {
	number, hash, _ := strings.Cut(strings.TrimRight(s, " \n"), ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	if raw, bad := hex.DecodeString(hash); err != nil || bad != nil || len(raw) != sha256.Size {
		return Head{}, errHead
	}
	return Head{seq, hash}, nil
}
