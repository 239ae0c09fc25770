package shim

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// SecretsDir is where the engine mounts its own secrets, in the shim's private
// directory: SecretFile names them.
const SecretsDir = DefaultRunDir + "/secrets"

// SecretFile is the name of the i-th secret's file in SecretsDir.
func SecretFile(i int) string { return strconv.Itoa(i) }

// Bounds of what becomes part of an environment: the kernel's of one variable,
// name and "=" included (MAX_ARG_STRLEN less the NUL), and of all together.
const (
	maxVariable = 128<<10 - 1
	maxSecrets  = 1 << 20
)

// withSecrets adds to an environment the variables whose values are in files of
// dir, in place of those of the same names. An error names the variable and
// shows no value.
func withSecrets(env []string, secrets map[string]string, dir string) ([]string, error) {
	if len(secrets) == 0 {
		return env, nil
	}
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, ok := secrets[name]
		return ok
	})
	total := 0
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		file := secrets[name]
		if file != filepath.Base(file) || name == "" || strings.ContainsAny(name, "=\x00") {
			return nil, remotef(CodeInvalid, "the secret of %q: not a file's name, or not a variable's", name)
		}
		value, err := readSecret(filepath.Join(dir, file), maxVariable-len(name)-1)
		if err != nil {
			return nil, remotef(CodeSecret, "the secret of %s: %v", name, err)
		}
		if total += len(name) + len(value) + 2; total > maxSecrets {
			return nil, remotef(CodeSecret, "the secrets are larger than %d bytes together", maxSecrets)
		}
		env = append(env, name+"="+string(value))
	}
	return env, nil
}

func readSecret(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("it can't be read: %w", err)
	}
	defer closeFiles(f)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("it is no regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("it can't be read: %w", err)
	case len(b) > limit:
		return nil, fmt.Errorf("it is too long for an environment variable, of which the kernel takes %d bytes", maxVariable)
	case bytes.IndexByte(b, 0) >= 0:
		return nil, fmt.Errorf("it holds a NUL character, which no environment variable can carry")
	}
	return b, nil
}

// SecretFact is a secret's file, as the sandbox's root sees it, and whether the
// agent could read it.
type SecretFact struct {
	File  string      `json:"file"`
	Mode  fs.FileMode `json:"mode"`
	UID   int         `json:"uid"`
	Read  bool        `json:"read"`  // by the sandbox's root
	Agent bool        `json:"agent"` // readable by the agent
}

// secretFacts looks at the files of dir as root.
func secretFacts(dir string) []SecretFact {
	entries, err := os.ReadDir(dir)
	if err != nil { // there is none
		return nil
	}
	var facts []SecretFact
	for _, e := range entries {
		f := SecretFact{File: e.Name(), UID: -1}
		path := filepath.Join(dir, e.Name())
		if fi, err := os.Lstat(path); err == nil {
			f.Mode = fi.Mode()
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				f.UID = int(st.Uid)
			}
		}
		f.Read = opens(path)
		facts = append(facts, f)
	}
	return facts
}

// tryAsAgent completes the facts once the process has become the agent.
func tryAsAgent(dir string, facts []SecretFact) {
	for i := range facts {
		facts[i].Agent = opens(filepath.Join(dir, facts[i].File))
	}
}

func opens(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	closeFiles(f)
	return true
}
