package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func me() stromboli.Principal { return stromboli.Principal{Tenant: "default", Name: "me"} }

// mortal is a store whose process dies before its nth change.
type mortal struct {
	Store
	left int
}

var errDead = errors.New("killed")

func (m *mortal) ReplaceBox(ctx context.Context, s stromboli.SealedSecret, keyID string, box []byte) error {
	if m.left--; m.left < 0 {
		return errDead
	}
	return m.Store.ReplaceBox(ctx, s, keyID, box)
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "stromboli.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func openKeys(t *testing.T, path string) *Keyring {
	t.Helper()
	keys, err := OpenKeyring(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestVault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st := openStore(t, dir)
	v := NewVault(st, openKeys(t, filepath.Join(dir, "keys")))
	ctx := t.Context()
	value := []byte("a value that is nowhere")
	made, err := v.Create(ctx, me(), "token", value)
	if err != nil || made.ID == "" || made.Name != "token" {
		t.Fatalf("%+v, %v", made, err)
	}
	if got, err := v.Get(ctx, "default", "token"); err != nil || !bytes.Equal(got, value) {
		t.Errorf("%q, %v", got, err)
	}
	if list, err := v.List(ctx, me()); err != nil || len(list) != 1 || list[0].Name != "token" {
		t.Errorf("%+v, %v", list, err)
	}
	other := stromboli.Principal{Tenant: "other"}
	if _, err := v.Get(ctx, "other", "token"); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("another tenant's value: %v", err)
	}
	if _, err := v.Describe(ctx, other, "token"); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	if err := v.Delete(ctx, other, "token"); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("another tenant deletes: %v", err)
	}
	if _, err := v.Create(ctx, other, "token", value); err != nil {
		t.Errorf("the same name of another tenant: %v", err)
	}
	for _, c := range []struct {
		name  string
		value []byte
		want  stromboli.Code
	}{
		{"token", value, stromboli.Conflict},
		{"", value, stromboli.Invalid},
		{"a/b", value, stromboli.Invalid},
		{"a b", value, stromboli.Invalid},
		{strings.Repeat("x", 254), value, stromboli.Invalid},
		{"ü", value, stromboli.Invalid},
		{"empty", nil, stromboli.Invalid},
		{"nul", []byte("a\x00b"), stromboli.Invalid},
		{"large", make([]byte, stromboli.MaxSecretValue+1), stromboli.Invalid},
	} {
		if _, err := v.Create(ctx, me(), c.name, c.value); !errors.Is(err, c.want) || strings.Contains(fmt.Sprint(err), "nowhere") {
			t.Errorf("%q: %v, want %s", c.name, err, c.want)
		}
	}
	for _, name := range []string{strings.Repeat("x", 253), "A-_9"} {
		if _, err := v.Create(ctx, me(), name, bytes.Repeat([]byte("x"), stromboli.MaxSecretValue)); err != nil {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	// Nothing on the disk has it in the clear.
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || bytes.Contains(b, []byte("nowhere")) {
			t.Errorf("%s: %v, or it holds the value", e.Name(), err)
		}
	}
	if err := v.Delete(ctx, me(), "token"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get(ctx, "default", "token"); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("deleted: %v", err)
	}
	// Another key can't open it, and says which one could.
	stranger := NewVault(st, openKeys(t, filepath.Join(dir, "others")))
	if _, err := stranger.Get(ctx, "other", "token"); !errors.Is(err, stromboli.NotConfigured) || !strings.Contains(err.Error(), v.keys.keys[0].id) {
		t.Errorf("with another key: %v", err)
	}
}

// TestSealed: no byte of what is stored may change, and no row take another's place.
func TestSealed(t *testing.T) {
	t.Parallel()
	k := openKeys(t, filepath.Join(t.TempDir(), "keys"))
	id, box, err := k.seal("a", "n", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.open("a", "n", id, box); err != nil || string(got) != "value" {
		t.Fatalf("%q, %v", got, err)
	}
	for i := range box {
		damaged := bytes.Clone(box)
		damaged[i] ^= 1
		if got, err := k.open("a", "n", id, damaged); err == nil {
			t.Errorf("byte %d: %q", i, got)
		}
	}
	for _, as := range [][2]string{{"b", "n"}, {"a", "m"}, {"", "a\x00n"}, {"a\x00n", ""}} {
		if got, err := k.open(as[0], as[1], id, box); err == nil {
			t.Errorf("as %q: %q", as, got)
		}
	}
	for n := range box {
		if _, err := k.open("a", "n", id, box[:n]); err == nil {
			t.Errorf("%d bytes of it", n)
		}
	}
	_, again, err := k.seal("a", "n", []byte("value"))
	if err != nil || bytes.Equal(again, box) {
		t.Errorf("sealed twice alike: %v", err)
	}
}

// TestRekeyKilled: killed before any of its writes, everything can still be
// opened, and the next one finishes.
func TestRekeyKilled(t *testing.T) {
	t.Parallel()
	const secrets = 5
	for dies := range secrets + 1 {
		dir := t.TempDir()
		st, path := openStore(t, dir), filepath.Join(dir, "keys")
		v := NewVault(st, openKeys(t, path))
		for i := range secrets {
			if _, err := v.Create(t.Context(), me(), fmt.Sprint("s", i), fmt.Append(nil, "value", i)); err != nil {
				t.Fatal(err)
			}
		}
		first := v.keys.keys[0].id
		n, err := NewVault(&mortal{st, dies}, openKeys(t, path)).Rekey(t.Context())
		if (err == nil) != (dies == secrets) || n != dies {
			t.Fatalf("dies at %d: %d, %v", dies, n, err)
		}
		next := NewVault(st, openKeys(t, path))
		check := func(when string) {
			for i := range secrets {
				if got, err := next.Get(t.Context(), "default", fmt.Sprint("s", i)); err != nil || string(got) != fmt.Sprint("value", i) {
					t.Errorf("dies at %d, %s: %q, %v", dies, when, got, err)
				}
			}
		}
		check("then")
		if _, err := next.Rekey(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("after the next one")
		if kept := openKeys(t, path).keys; len(kept) != 1 || kept[0].id == first {
			t.Errorf("dies at %d: %d keys are left", dies, len(kept))
		}
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	k := openKeys(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again := openKeys(t, path); again.keys[0].id != k.keys[0].id {
		t.Error("another key after reading it again")
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		says string
	}{
		"for others": {string(good), 0o640, "chmod 600"},
		"empty":      {"", 0o600, "holds no key"},
		"garbage":    {"stromboli-key-1 AAAA\n", 0o600, "no key"},
		"too large":  {strings.Repeat("x", 100<<10), 0o600, "regular file"},
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(file, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyring(file); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Symlink(path, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyring(filepath.Join(dir, "link")); err == nil {
		t.Error("a link was followed")
	}
}

// FuzzOpen: nothing but what was sealed opens.
func FuzzOpen(f *testing.F) {
	k, err := OpenKeyring(filepath.Join(f.TempDir(), "keys"))
	if err != nil {
		f.Fatal(err)
	}
	id, box, err := k.seal("t", "n", []byte("value"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("t", "n", box)
	f.Add("t", "n", []byte{})
	f.Fuzz(func(t *testing.T, tenant, name string, b []byte) {
		if got, err := k.open(tenant, name, id, b); err == nil && (tenant != "t" || name != "n" || !bytes.Equal(b, box)) {
			t.Fatalf("%q opened as %q of %q: %q", b, name, tenant, got)
		}
	})
}
