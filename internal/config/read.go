package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ReadFile reads a regular file of at most most bytes and tells what it is. The
// error names the file.
func ReadFile(path string, most int64) ([]byte, fs.FileInfo, error) {
	// A fifo must not keep the server waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: it is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: it is larger than %d bytes", path, most)
	}
	return b, info, err
}

// maxPrivate bounds a file of tokens or credentials, in bytes.
const maxPrivate = 1 << 20

// readPrivate reads a JSON object into what a pointer leads to, from a file that
// nobody else may read.
func readPrivate(path string, into any) error {
	b, info, err := ReadFile(path, maxPrivate)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("others can read it (mode %04o): chmod 600 %s", info.Mode().Perm(), path)
	}
	if uid, foreign := ownerOf(info); foreign {
		return fmt.Errorf("it belongs to uid %d, neither the server's nor root's: chown %d %s", uid, os.Geteuid(), path)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return plainJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON object")
	}
	return nil
}

// ownerOf is a file's owner; foreign: neither root nor who runs the server.
func ownerOf(info fs.FileInfo) (uid uint32, foreign bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Uid, st.Uid != 0 && int64(st.Uid) != int64(os.Geteuid())
}
