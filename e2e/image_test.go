package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// TestAgentImage: people find in the default image what they expect.
func TestAgentImage(t *testing.T) {
	s := start(t, "STROMBOLI_AGENT_TIMEZONE=Asia/Tokyo")
	_, out := s.probe(`
for tool in bash git rg curl less jq python3 pip node npm npx ps; do
  printf '%s=%s\n' "$tool" "$($tool --version 2>&1 | head -n1)"
done
echo "ssh=$(ssh -V 2>&1)"
echo "ca=$(grep -c BEGIN /etc/ssl/certs/ca-certificates.crt)"
echo "node major=$(node -p 'parseInt(process.versions.node)')"
echo "pip flag=$PIP_BREAK_SYSTEM_PACKAGES"
echo "id=$(id)"
echo "whoami=$(whoami)"
echo "getpass=$(python3 -c 'import getpass; print(getpass.getuser())')"
echo "home=$(cd && pwd) $(touch ~/x && echo writable)"
mkdir -p /tmp/repo && cd /tmp/repo && git init -q && echo x > f && git add f && git commit -qm 'a commit' && echo "commit=$(git log --format='%an <%ae> %s on %D')"
pip install -q --user --no-index /probe/`+networkWheelName+` && echo "pip user=$(python3 -c 'import stubpkg; print(stubpkg.WORKS)')"
pip uninstall -qy stubpkg; pip install -q --no-index /probe/`+networkWheelName+` && echo "pip plain=$(python3 -c 'import stubpkg; print(stubpkg.WORKS)')"
cp -r /probe/tool /tmp/tool; mkdir -p /tmp/app && cd /tmp/app && npm init -y > /dev/null && npm install --no-audit --no-fund --offline /tmp/tool > /dev/null && echo "npm local=$(npx --no-install stubtool)"
npm install -g --no-audit --no-fund --offline /tmp/tool > /dev/null && echo "npm global=$(stubtool)"
echo "zone=$(date -d @0 '+%H %Z') $(node -p 'new Date(0).getHours() + " " + Intl.DateTimeFormat().resolvedOptions().timeZone') $(python3 -c 'import time; print(time.localtime(0).tm_hour, time.tzname[0])')"
echo "other zone=$(TZ=America/New_York date -d @0 '+%H %Z') $(TZ=UTC date -d @0 '+%H %Z')"
python3 -c 'import ensurepip' && python3 -m venv --without-pip /tmp/venv && echo "venv=$(/tmp/venv/bin/python -c 'import sys; print(sys.prefix)')"
echo "characters=$(printf 'é→😀' | wc -m) $(python3 -c 'import sys; print(sys.stdout.encoding, "é")') $LANG"
touch /tmp/é && echo "file=$(ls /tmp | grep é)"
dd if=/dev/zero of=/tmp/big bs=1M count=300 status=none && echo "big=$(stat -c %s /tmp/big)"
`, map[string]string{
		networkWheelName:    string(networkWheel(t)),
		"tool/package.json": `{"name":"stubtool","version":"1.0.0","bin":{"stubtool":"main.js"}}`,
		"tool/main.js":      "#!/usr/bin/env node\nconsole.log('npm works')\n",
	}, func(in *stromboli.RunSpec) { in.Podman.CPUs, in.Podman.Memory = "2", "512m" })
	got := probeLines(out)
	for _, tool := range []string{"bash", "git", "rg", "curl", "less", "jq", "python3", "pip", "node", "npm", "npx", "ps", "ssh"} {
		if v := got[tool]; v == "" || !strings.ContainsAny(v, "0123456789") || strings.Contains(v, "not found") {
			t.Errorf("%s says its version is %q", tool, v)
		}
	}
	want := map[string]string{
		"pip flag": "1", "id": "uid=1000(agent) gid=1000(agent) groups=1000(agent)", "whoami": "agent", "getpass": "agent",
		"home": "/home/agent writable", "commit": "Stromboli Agent <agent@stromboli.invalid> a commit on HEAD -> main",
		"pip user": "pip works", "pip plain": "pip works", "venv": "/tmp/venv",
		"npm local": "npm works", "npm global": "npm works",
		"zone": "09 JST 9 Asia/Tokyo 9 JST", "other zone": "19 EST 00 UTC",
		"characters": "3 utf-8 é C.UTF-8", "file": "é", "big": "314572800",
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: %q, want %q", name, got[name], w)
		}
	}
	if m := got["node major"]; len(m) != 2 || m < "24" {
		t.Errorf("Node.js %s; releases before 24 ignore NODE_USE_ENV_PROXY", m)
	}
	if n := got["ca"]; len(n) < 2 {
		t.Errorf("%s certificates", n)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// TestForeignImage: an image of another world, without glibc, passwd, /tmp and
// workspace, with an entrypoint and a user of its own, runs the same agent; and
// one without bash is refused.
func TestForeignImage(t *testing.T) {
	bash := imageProgram(t, "bash-static", "bash-static")
	busybox := imageProgram(t, "busybox-static", "busybox")
	// The server's own environment names no registry to fetch the build from.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cfg := setup.Config{CacheDir: suite.cache, Env: os.Environ(), Libc: setup.Musl}
	if _, err := setup.CLI(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.MuslLoader(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	s := start(t, "STROMBOLI_AGENT_TIMEZONE=Asia/Tokyo")
	image := imageLoad(t, imageRoot(bash, busybox))
	job, out := s.probe(`
echo "id=$(id -u) $(id -un) $HOME"
echo "passwd=$(cat /etc/passwd)"
echo "bash=$BASH_VERSION"
echo "loaders=$(ls /lib /lib64 2>/dev/null | tr '\n' ' ')"
echo "env=$FROM_IMAGE $PATH"
echo "dir=$(pwd)"
echo x > /tmp/x && echo "tmp=$(cat /tmp/x)"
echo "zone=$(printf '%(%H %Z)T' 0)"
echo "setuid=$(/suid/bash -p -c 'echo $UID $EUID')"
echo "init=$(tr '\0' ' ' < /proc/1/cmdline)"
`, nil, func(in *stromboli.RunSpec) { in.Podman.Image = image })
	got := probeLines(out)
	want := map[string]string{
		"id": "1000 agent /home/agent", "passwd": "agent:x:1000:1000:Stromboli agent:/home/agent:/bin/bash", "env": "yes /usr/bin:/bin",
		"dir": "/workspace", "tmp": "x", "zone": "09 JST", "setuid": "1000 1000", "init": "/run/stromboli/shim ",
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: %q, want %q", name, got[name], w)
		}
	}
	if got["bash"] == "" || !strings.Contains(got["loaders"], "ld-musl") || strings.Contains(got["loaders"], "ld-linux") {
		t.Errorf("bash %q, loaders %q", got["bash"], got["loaders"])
	}
	if job.ImageDigest == "" {
		t.Error("the run has no digest of its image")
	}
	// Without the defences the program is what its bit says.
	if control, err := suite.engine.CLI(s.ctx(), "run", "--rm", "--network", "none", "--user", "1000:1000", "--entrypoint", "/suid/bash", image,
		"-p", "-c", "echo $UID $EUID").Output(); err != nil || string(control) != "1000 0\n" {
		t.Errorf("the control: %q, %v", control, err)
	}

	for _, c := range []struct{ image, why string }{
		{imageLoad(t, imageRoot(nil, busybox)), "no bash"},
		{"localhost/stromboli-test/no-such-image:1", "not on this machine"},
	} {
		in := spec(text("never"))
		in.Podman.Image = c.image
		if _, err := s.c.Run(s.ctx(), in); !errors.Is(err, stromboli.ImageMissing) || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), c.image) {
			t.Errorf("%s: %v, want one that says %q", c.image, err, c.why)
		}
	}
}

// imageRoot is the tar of a root file system with static programs alone.
func imageRoot(bash, busybox []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		_ = w.WriteHeader(&h) // a buffer takes everything
		_, _ = w.Write(data)
	}
	for _, dir := range []string{"bin/", "work/", "suid/"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, applet := range []string{"sh", "cat", "ls", "id", "tr", "mkdir", "rm", "grep", "sed", "env", "uname", "touch", "sleep", "head", "which"} {
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}, nil)
	}
	if bash != nil {
		put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/bash", Mode: 0o755}, bash)
		put(tar.Header{Typeflag: tar.TypeReg, Name: "suid/bash", Mode: 0o4755}, bash)
	}
	_ = w.Close()
	return b.Bytes()
}

// imageLoad puts a root file system into the engine's store, as an image with
// an entrypoint that isn't there, the user 7:8 and the workdir /work.
func imageLoad(t *testing.T, root []byte) string {
	t.Helper()
	ref := "localhost/stromboli-test/" + strings.ToLower(rand.Text()[:10]) + ":1"
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := suite.engine.ImageLoad(ctx, bytes.NewReader(enginetest.Archive(root, ref))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := suite.engine.ImageRemove(ctx, ref); err != nil {
			t.Errorf("removing the test's image: %v", err)
		}
	})
	return ref
}

// imageProgram takes a static program out of a package of the distribution,
// which is kept in the cache and never installed.
func imageProgram(t *testing.T, pkg, name string) []byte {
	t.Helper()
	kept := filepath.Join(suite.cache, "tests", pkg)
	if data, err := os.ReadFile(kept); err == nil {
		return data
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			enginetest.Missing(t, "debian", "the test's image is made from packages of Debian")
		}
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	run := func(argv ...string) error {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%v: %v, %s", argv, err, out)
		}
		return err
	}
	download := []string{"apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg}
	if err := run(download...); err != nil && os.Geteuid() == 0 { // no package lists, or old ones
		if err := errors.Join(run("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "update"), run(download...)); err != nil {
			t.Fatal(err)
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("apt-get left %v, %v", debs, err)
	}
	if err := run("dpkg-deb", "-x", debs[0], filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	for _, bin := range []string{"bin", "usr/bin"} {
		data, err := os.ReadFile(filepath.Join(dir, "root", bin, name))
		if err != nil {
			continue
		}
		temp := kept + "." + rand.Text()
		if err := errors.Join(os.MkdirAll(filepath.Dir(kept), 0o755), os.WriteFile(temp, data, 0o755), os.Rename(temp, kept)); err != nil {
			t.Logf("keeping %s: %v", pkg, err)
		}
		return data
	}
	t.Fatalf("%s has no %s", pkg, name)
	return nil
}
