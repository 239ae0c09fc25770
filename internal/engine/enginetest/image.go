package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// PasswdText is the /etc/passwd of test images.
const PasswdText = "root:x:0:0:root:/root:/bin/sh\n"

// BuildProbe builds the program that test containers run and gives its bytes.
func BuildProbe(tb testing.TB) []byte {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "probe")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", file,
		"github.com/tomblancdev/stromboli/internal/engine/enginetest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build the probe: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// Rootfs is the tar of a root file system with probe at /probe, a passwd file
// and a symlink, /lib to usr/lib.
func Rootfs(probe []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		// A bytes.Buffer takes everything.
		_ = w.WriteHeader(&h)
		_, _ = w.Write(data)
	}
	for _, dir := range []string{"etc", "usr", "usr/lib", "proc", "sys", "dev", "run", "root", "work", "ro", "out"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	put(tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib"}, nil)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "probe", Mode: 0o755}, probe)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/lib.txt", Mode: 0o644}, []byte("lib\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte(PasswdText))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	_ = w.Close()
	return b.Bytes()
}

// imageConfig is the part of an image's configuration that archives carry.
type imageConfig struct {
	User       string
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	Labels     map[string]string
}

type archiveConfig struct {
	Architecture string      `json:"architecture"`
	OS           string      `json:"os"`
	Created      time.Time   `json:"created"`
	Config       imageConfig `json:"config"`
	Rootfs       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

type archiveManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Archive wraps a root file system's tar as a saved image named ref, with a
// user, a workdir, an entrypoint and an environment for tests to find.
func Archive(rootfs []byte, ref string) []byte {
	sum := sha256.Sum256(rootfs)
	config := archiveConfig{
		Architecture: runtime.GOARCH, OS: "linux", Created: time.Unix(1_700_000_000, 0).UTC(),
		Config: imageConfig{
			User: "7:8", Env: []string{"PATH=/usr/bin:/bin", "FROM_IMAGE=yes"}, Entrypoint: []string{"/probe"},
			Cmd: []string{"exit", "9"}, WorkingDir: "/work", Labels: map[string]string{"stromboli.test.image": "yes"},
		},
	}
	config.Rootfs.Type, config.Rootfs.DiffIDs = "layers", []string{"sha256:" + hex.EncodeToString(sum[:])}
	configJSON, _ := json.Marshal(config) // these types always marshal
	configSum := sha256.Sum256(configJSON)
	name := hex.EncodeToString(configSum[:]) + ".json"
	manifest, _ := json.Marshal([]archiveManifest{{Config: name, RepoTags: []string{ref}, Layers: []string{"layer.tar"}}})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{name, configJSON}, {"layer.tar", rootfs}, {"manifest.json", manifest}} {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data))})
		_, _ = w.Write(f.data)
	}
	_ = w.Close()
	return b.Bytes()
}
