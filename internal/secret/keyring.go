// Package secret keeps callers' secrets: values sealed with a key that lies in
// a file of its own, in rows that are worthless without it.
//
// A value is sealed with AES-256-GCM under a random nonce of 96 bits, which is
// safe for some four billion values of one key. What it belongs to, its tenant
// and name, is authenticated with it, so that rows can't be swapped. The key
// file has one line per key, the newest first: "stromboli-key-1" and the key's
// 32 bytes in base64. The newest seals, all open; a key's id is the beginning
// of its SHA-256.
//
// It promises that a value is in no error and no log, and refuses a key file
// that others can read.
package secret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	keyBytes   = 32
	nonceBytes = 12
	keyPrefix  = "stromboli-key-1 "
	maxKeyFile = 64 << 10
)

// Keyring is the keys of a file.
type Keyring struct {
	path string
	keys []key // newest first
}

type key struct {
	id   string
	raw  [keyBytes]byte
	aead cipher.AEAD
}

// OpenKeyring reads a key file, or makes one with a new key where there is
// none. It is durable on return.
func OpenKeyring(path string) (*Keyring, error) {
	k := &Keyring{path: path}
	text, err := readKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh, err := newKey()
		if err != nil {
			return nil, err
		}
		return k, k.save([]key{fresh})
	}
	if err != nil {
		return nil, err
	}
	if k.keys, err = parseKeys(text); err != nil {
		return nil, fmt.Errorf("the key file %s: %w", path, err)
	}
	return k, nil
}

func readKeyFile(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("the key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("the key file: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular() || info.Size() > maxKeyFile:
		return "", fmt.Errorf("the key file %s is not a regular file of at most %d bytes", path, maxKeyFile)
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("the key file %s can be read by others: chmod 600 %s", path, path)
	case ok && int64(st.Uid) != int64(os.Geteuid()):
		return "", fmt.Errorf("the key file %s belongs to uid %d, not to the server's: chown %d %s", path, st.Uid, os.Geteuid(), path)
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) && err != nil {
		return "", fmt.Errorf("the key file: %w", err)
	}
	return string(b), nil
}

func parseKeys(text string) ([]key, error) {
	var keys []key
	for line := range strings.Lines(text) {
		encoded, ok := strings.CutPrefix(strings.TrimSpace(line), keyPrefix)
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil || len(raw) != keyBytes {
			return nil, errors.New("a line is no key") // and may be one: it is not shown
		}
		k, err := makeKey([keyBytes]byte(raw))
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key")
	}
	return keys, nil
}

func newKey() (key, error) {
	var raw [keyBytes]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return key{}, fmt.Errorf("making a key: %w", err)
	}
	return makeKey(raw)
}

func makeKey(raw [keyBytes]byte) (key, error) {
	block, err := aes.NewCipher(raw[:])
	if err != nil {
		return key{}, fmt.Errorf("making a key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return key{}, fmt.Errorf("making a key: %w", err)
	}
	sum := sha256.Sum256(append([]byte("stromboli key id"), raw[:]...))
	return key{id: hex.EncodeToString(sum[:8]), raw: raw, aead: aead}, nil
}

// save replaces the file, in one step, and makes the keys hold.
func (k *Keyring) save(keys []key) error {
	var b bytes.Buffer
	for _, key := range keys {
		b.WriteString(keyPrefix + base64.StdEncoding.EncodeToString(key.raw[:]) + "\n")
	}
	if err := writeSynced(k.path, b.Bytes()); err != nil {
		return fmt.Errorf("writing the key file: %w", err)
	}
	k.keys = keys
	return nil
}

func writeSynced(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	_ = f.Close() // synced already
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // written; only the rename may be undone by a power cut
	}
	_ = dir.Sync()
	_ = dir.Close()
	return nil
}

// seal encrypts a value with the newest key.
func (k *Keyring) seal(tenant, name string, value []byte) (keyID string, box []byte, err error) {
	newest := k.keys[0]
	nonce := make([]byte, nonceBytes, nonceBytes+len(value)+newest.aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return "", nil, fmt.Errorf("sealing: %w", err)
	}
	return newest.id, newest.aead.Seal(nonce, nonce, value, belongsTo(tenant, name)), nil
}

// open decrypts a value.
func (k *Keyring) open(tenant, name, keyID string, box []byte) ([]byte, error) {
	for _, key := range k.keys {
		if key.id != keyID {
			continue
		}
		if len(box) < nonceBytes {
			return nil, errors.New("it is damaged")
		}
		value, err := key.aead.Open(nil, box[:nonceBytes], box[nonceBytes:], belongsTo(tenant, name))
		if err != nil {
			return nil, errors.New("it is damaged, or another's")
		}
		return value, nil
	}
	return nil, fmt.Errorf("it was sealed with the key %s, which %s doesn't hold: put that key file back, or delete the secret and make it anew", keyID, k.path)
}

// belongsTo is what is authenticated with a value. A tenant holds no NUL.
func belongsTo(tenant, name string) []byte {
	return []byte("stromboli secret\x00" + tenant + "\x00" + name)
}
