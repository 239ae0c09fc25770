package e2e_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// boxed is a server in a container of its own, egress in a second one of the
// same image, and the engine outside. The sessions' directory alone is shared
// with the host, at another path.
type boxed struct {
	*server
	id       string
	image    string // of the server
	sessions string // on the host
	port     string
}

const (
	boxedSessions = "/sessions" // in the containers
	boxedSocket   = "/run/podman/podman.sock"
)

func (b *boxed) podman(args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := suite.engine.CLI(ctx, args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// run starts a container with the program under test in it.
func (b *boxed) run(name string, flags []string, args ...string) {
	b.t.Helper()
	argv := append([]string{
		"run", "-d", "--name", b.id + "-" + name, "--network", "host", "--read-only", "-v", b.sessions + ":" + boxedSessions,
	}, flags...)
	if suite.rootless {
		argv = append(argv, "--userns", "keep-id", "--cap-drop", "all", "--security-opt", "no-new-privileges") // as in compose.yml
	}
	b.podman(append(append(argv, b.image), args...)...)
}

// build makes the server's image from its Containerfile.
func (b *boxed) build() {
	b.t.Helper()
	dir := b.t.TempDir()
	file, err := filepath.Abs("../images/server/Containerfile")
	if suite.rootless { // the clone is another user's
		file, err = filepath.Abs("testdata/Containerfile")
	}
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "cp", suite.bin, filepath.Join(dir, "stromboli")).CombinedOutput(); err != nil {
		b.t.Fatalf("%s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-certificates.crt"), nil, 0o600); err != nil { // the model's is http here
		b.t.Fatal(err)
	}
	b.image = "localhost/" + strings.ToLower(b.id) + ":1"
	b.podman("build", "-q", "--layers=false", "-t", b.image, "-f", file, dir)
}

func (b *boxed) serve() {
	b.t.Helper()
	env := []string{
		"STROMBOLI_DATA_DIR=/data", "STROMBOLI_SERVER_ADDRESS=127.0.0.1:" + b.port, "CONTAINER_HOST=unix://" + boxedSocket,
		"STROMBOLI_AGENT_SESSIONS_DIR=" + boxedSessions, "STROMBOLI_AGENT_SESSIONS_HOST_DIR=" + b.sessions, "STROMBOLI_EGRESS_EXTERNAL=true",
		"STROMBOLI_AGENT_ALLOWED_VOLUMES=/tmp,/srv/data", "STROMBOLI_AGENT_IMAGE=" + suite.image, "STROMBOLI_LOG_LEVEL=debug",
		"ANTHROPIC_API_KEY=" + modelKey, "ANTHROPIC_BASE_URL=" + b.model.URL, "STROMBOLI_RESOURCES_MEMORY=1g",
		"STROMBOLI_RESOURCES_ALLOW_UNENFORCED=" + strconv.FormatBool(suite.rootless),
	}
	flags := []string{
		"-v", suite.engine.Socket() + ":" + boxedSocket, "-v", b.data + ":/data",
		"-v", b.volumes + ":" + b.volumes, "-v", b.volumes + "/other:/srv/data",
	}
	for _, kv := range env {
		flags = append(flags, "-e", kv)
	}
	b.run("server", flags, "serve")
	b.url = "http://127.0.0.1:" + b.port
	waitFor(b.t, "the server in its container", func() bool {
		b.c = newClient(b.t, b.url)
		return b.c.Ready(b.ctx()) == nil
	})
}

// TestServerInContainer: sockets, shim, CLI and files reach the sandboxes
// though server and engine know the directories by different paths, and the
// server's container can die and come back under a run.
func TestServerInContainer(t *testing.T) {
	b := &boxed{server: prepare(t), id: "stromboli-test-" + filepath.Base(suite.root)}
	b.sessions = filepath.Join(b.dir, "shared")
	for _, dir := range []string{b.data, b.sessions, filepath.Join(b.volumes, "other"), filepath.Join(b.volumes, "mine"), filepath.Join(b.sessions, ".stromboli", "cache")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	owner := uint32(os.Getuid())
	if !suite.rootless {
		owner = 1234
		if err := os.Chown(filepath.Join(b.volumes, "mine"), 1234, 1234); err != nil {
			t.Fatal(err)
		}
	}
	// The CLI by links: it is large.
	if out, err := exec.CommandContext(b.ctx(), "cp", "-al", filepath.Join(suite.cache, "cli"), filepath.Join(b.sessions, ".stromboli", "cache", "cli")).CombinedOutput(); err != nil {
		if out2, err := exec.CommandContext(b.ctx(), "cp", "-a", filepath.Join(suite.cache, "cli"), filepath.Join(b.sessions, ".stromboli", "cache")).CombinedOutput(); err != nil {
			t.Fatalf("%s%s", out, out2)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, b.port, _ = net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.removeContainers)
	b.build()
	b.run("egress", nil, "egress", "--stay", "--dir", boxedSessions+"/.stromboli/egress")
	b.serve()

	spec := keyed("box", bash("id -u; echo made > note; cat note"), text("done"))
	spec.Podman.Volumes = []string{filepath.Join(b.volumes, "mine") + ":/mine"}
	spec.Workdir = "/mine"
	run, err := b.c.Run(b.ctx(), spec)
	if err != nil || run.Status != "completed" {
		t.Fatalf("%+v, %v", run, err)
	}
	info, err := os.Stat(filepath.Join(b.volumes, "mine", "note"))
	if err != nil || containerOwner(info) != owner {
		t.Errorf("the agent's file on the host: %v, %v", info, err)
	}
	if got, err := os.Stat(filepath.Join(b.sessions, run.SessionID, "home", ".claude")); err != nil || containerOwner(got) != owner {
		t.Errorf("the session's home on the host: %v, %v", got, err)
	}
	if got, err := os.Stat(filepath.Join(b.sessions, ".stromboli")); err != nil || got.Mode().Perm() != 0o700 {
		t.Errorf("the shared private directory: %v, %v", got, err)
	}

	// Volumes: what the container lacks, what is the container's own, what is
	// something else there than on the host.
	for _, volume := range []string{b.dir + "/missing:/x", "/tmp:/x", "/srv/data:/x"} {
		bad := spec
		bad.Podman.Volumes = []string{volume}
		bad.Workdir = ""
		failed, err := b.c.Run(b.ctx(), bad)
		says := failed.Error
		if err != nil {
			says = err.Error()
		}
		if !strings.Contains(says, "the path that it has on the host") {
			t.Errorf("%s: %s, %s", volume, failed.Status, says)
		}
	}

	// The server's container dies under a run; egress and agent go on.
	gone := keyed("gone", modelstub.Step{Text: strings.Repeat("word ", 40), DelayMS: 3000}, text("done"))
	job, err := b.c.RunAsync(b.ctx(), gone)
	if err != nil {
		t.Fatal(err)
	}
	b.waitPhase(job.JobID, stromboli.PhaseGenerating)
	b.podman("rm", "-f", "-t", "0", b.id+"-server")
	b.serve()
	waitFor(t, "the end of the run", func() bool {
		j, err := b.c.Job(b.ctx(), job.JobID)
		return err == nil && j.Status.Terminal()
	})
	j, err := b.c.Job(b.ctx(), job.JobID)
	if err != nil || j.Status != stromboli.Completed {
		t.Errorf("%+v, %v", j, err)
	}
	checkSequence(t, b.events(job.JobID))
	waitFor(t, "the sandboxes' removal", func() bool { return len(b.left()) == 0 })
}

// left lists the sandboxes' directories.
func (b *boxed) left() []string {
	dirs, _ := filepath.Glob(filepath.Join(b.sessions, ".stromboli", "sb", "*"))
	return dirs
}

func (b *boxed) removeContainers() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, name := range []string{"server", "egress"} {
		full := b.id + "-" + name
		if b.t.Failed() {
			out, _ := suite.engine.CLI(ctx, "logs", full).CombinedOutput()
			b.t.Logf("%s:\n%s", full, out[max(0, len(out)-3000):])
		}
		if out, err := suite.engine.CLI(ctx, "rm", "-f", "-t", "0", full).CombinedOutput(); err != nil {
			b.t.Errorf("removing %s: %v: %s", full, err, out)
		}
	}
	if b.image != "" {
		if err := suite.engine.ImageRemove(ctx, b.image); err != nil {
			b.t.Errorf("removing the server's image: %v", err)
		}
	}
	for _, dir := range b.left() {
		if err := suite.engine.Remove(ctx, "stromboli-"+filepath.Base(dir)); err != nil {
			b.t.Errorf("removing a sandbox: %v", err)
		}
		if !b.t.Failed() {
			b.t.Errorf("a sandbox is left: %s", dir)
		}
	}
}

func containerOwner(info os.FileInfo) uint32 {
	return info.Sys().(*syscall.Stat_t).Uid //nolint:forcetypeassert // Linux
}
