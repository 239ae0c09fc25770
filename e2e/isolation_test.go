package e2e_test

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// isolationReport is what testdata/isolation.py prints.
type isolationReport struct {
	Facts struct {
		Status       map[string]string `json:"status"`
		UIDs         []string          `json:"uids"`
		Devices      []string          `json:"devices"`
		Routes       int               `json:"routes"`
		ReadOnly     bool              `json:"root_read_only"`
		Passwd       []string          `json:"passwd"`
		Hosts        string            `json:"hosts"`
		Resolv       string            `json:"resolv"`
		Hostname     string            `json:"hostname"`
		Init         string            `json:"init"`
		SetuidImage  []any             `json:"setuid image"`
		SetuidVolume []any             `json:"setuid volume"`
		SetuidRun    string            `json:"setuid run"`
		PtraceOwn    int               `json:"ptrace own"`
		Sockets      []string          `json:"sockets"`
		Environs     int               `json:"environs"`
		Secrets      []string          `json:"secrets"`
		KeyVariables []string          `json:"key variables"`
		APIKey       string            `json:"api key"`
		Processes    int               `json:"processes"`
		ProcessesEnd string            `json:"processes ended by"`
		Shm          int64             `json:"shm"`
		Memory       int               `json:"memory"` // MiB
		MemoryEnd    int               `json:"memory ended by"`
	} `json:"facts"`
	Attempts map[string]string `json:"attempts"`
}

const isolationKey = modelKey // the server's real credential

// TestIsolation: what an agent is, sees and can't do, looked at from inside;
// what the engine has in force, from outside; and that the real credential is
// in neither, nor anywhere on the disk.
func TestIsolation(t *testing.T) {
	s := start(t)
	info, err := suite.engine.Info(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/isolation.py")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	mode := "none"
	if info.EnforcesLimits {
		mode = "limits"
	}
	var probeDir string
	// The script waits for its leave to end, so that the engine can be asked meanwhile.
	in := s.probeSpec("python3 /probe/isolation.py "+mode+" > /workspace/report.json; touch /workspace/asked; until [ -e /workspace/go ]; do sleep 0.05; done",
		map[string]string{"isolation.py": string(script), "suid": string(program)}, func(in *stromboli.RunSpec) {
			probeDir, _, _ = strings.Cut(in.Podman.Volumes[0], ":")
			in.Podman.Memory, in.Podman.CPUs = "768m", "1"
		})
	if err := os.Chmod(filepath.Join(probeDir, "suid"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	started, err := s.c.RunAsync(s.ctx(), in)
	if err != nil {
		t.Fatal(err)
	}
	workspace := filepath.Join(s.data, "sessions", started.SessionID, "workspace")
	waitFor(t, "the agent's report", func() bool {
		_, err := os.Stat(filepath.Join(workspace, "asked"))
		return err == nil
	})
	sandboxes := s.sandboxes()
	if len(sandboxes) != 1 {
		t.Fatalf("sandboxes: %v", sandboxes)
	}
	isolationFromOutside(s, sandboxes[0], in.Podman, info)
	if err := os.WriteFile(filepath.Join(workspace, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	events := s.events(started.JobID)
	if job, err := s.c.Job(s.ctx(), started.JobID); err != nil || job.Status != stromboli.Completed {
		t.Errorf("the run ended as %s: %s, %v", job.Status, job.Error, err)
	}
	for _, e := range events {
		if bytes.Contains(e.Data, []byte(isolationKey)) {
			t.Errorf("the event %d of type %s holds the credential", e.Seq, e.Type)
		}
	}
	var got isolationReport
	raw, err := os.ReadFile(filepath.Join(workspace, "report.json"))
	if err == nil {
		err = json.Unmarshal(raw, &got)
	}
	if err != nil {
		t.Fatalf("the report: %v; the script said %s", err, s.probed(started.SessionID))
	}
	isolationControl(s, probeDir, got)
	isolationFacts(t, got, info)
	isolationAttempts(t, got.Attempts)

	// The model saw the real key; nothing that stays does.
	for _, r := range s.stub.Requests("") {
		if r.Header.Get("X-Api-Key") != isolationKey {
			t.Errorf("the model's endpoint was given the key %q", r.Header.Get("X-Api-Key"))
		}
		if strings.Contains(r.Body, isolationKey) {
			t.Error("the agent told the model the real key")
		}
	}
	s.stop()
	isolationSearch(t, s.data)
	if strings.Contains(s.log.tail(1<<24), isolationKey) {
		t.Error("the server's log holds the credential")
	}
}

// isolationControl shows that the script's attempts would succeed without the
// defences: as an ordinary user in an ordinary container.
func isolationControl(s *server, probeDir string, defended isolationReport) {
	s.t.Helper()
	out, err := suite.engine.CLI(s.ctx(), "run", "--rm", "--user", "1000:1000", "--network", "host", "-v", probeDir+":/probe:ro",
		suite.image, "python3", "/probe/isolation.py", "control").Output()
	var got isolationReport
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		s.t.Fatalf("the control: %v, %s", err, out)
	}
	if len(got.Attempts) < 5 || len(got.Facts.Devices) < 2 || got.Facts.SetuidImage[3] != "0" {
		s.t.Errorf("the control has devices %v, setuid programs with %v", got.Facts.Devices, got.Facts.SetuidImage)
	}
	for name, end := range got.Attempts {
		switch {
		case strings.HasPrefix(end, "done"):
		case name == "socket AF_VSOCK" && end == "EAFNOSUPPORT", name == "a user namespace" && (end == "EPERM" || end == "ENOSPC" || end == "EACCES"):
			s.t.Logf("this machine's kernel has it anyway: %s: %s", name, end)
		default:
			s.t.Errorf("the control could not %s: %s", name, end)
		}
		if _, tried := defended.Attempts[name]; !tried {
			s.t.Errorf("the agent didn't try: %s", name)
		}
	}
}

// isolationFacts checks what the agent is.
func isolationFacts(t *testing.T, got isolationReport, info engine.Info) {
	t.Helper()
	if got.Facts.PtraceOwn != 0 {
		t.Error("a debugger can't attach to the agent's own processes")
	}
	f := got.Facts
	const none = "0000000000000000"
	for name, want := range map[string]string{
		"Uid": "1000\t1000\t1000\t1000", "Gid": "1000\t1000\t1000\t1000", "Groups": "", "CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if f.Status[name] != want {
			t.Errorf("%s: %q, want %q", name, f.Status[name], want)
		}
	}
	if b := f.Status["CapBnd"]; b != "00000000000000e0" {
		t.Errorf("the bounding set holds more than the shim's three: %s", b)
	}
	if !slices.Equal(f.UIDs, []string{"1000"}) || f.Init != "/run/stromboli/shim\x00" {
		t.Errorf("processes beside the init run as %v; the init is %q", f.UIDs, f.Init)
	}
	if !slices.Equal(f.Devices, []string{"lo"}) || f.Routes != 0 {
		t.Errorf("network devices %v, %d routes", f.Devices, f.Routes)
	}
	if !f.ReadOnly || !slices.Equal(f.Passwd, []string{"agent", "/home/agent"}) || f.Hostname != "sandbox" {
		t.Errorf("root read-only: %v, passwd: %v, host name %s", f.ReadOnly, f.Passwd, f.Hostname)
	}
	for line := range strings.Lines(f.Hosts + f.Resolv) {
		if first := strings.Fields(line)[0]; first != "127.0.0.1" && first != "::1" && first != "#" && first != "options" {
			t.Errorf("hosts and resolv.conf tell of the host: %q", line)
		}
	}
	if !strings.Contains(f.Hosts, "localhost") || !strings.Contains(f.Hosts, "sandbox") {
		t.Errorf("hosts: %q", f.Hosts)
	}
	if want := []any{true, 0.0, "P", "1000", none}; !slices.Equal(f.SetuidImage, want) {
		t.Errorf("a setuid root program of the image: %v, want %v", f.SetuidImage, want)
	}
	if f.SetuidVolume[0] != true || f.SetuidRun != "1000" {
		t.Errorf("a setuid program in a volume: %v; it is user %s", f.SetuidVolume, f.SetuidRun)
	}
	if len(f.Sockets) != 0 || len(f.Secrets) != 0 || f.Environs < 3 {
		t.Errorf("sockets %v; the credential in %v; %d processes looked at", f.Sockets, f.Secrets, f.Environs)
	}
	if f.APIKey != "" && f.APIKey != claude.Placeholder {
		t.Errorf("the agent's key is %q", f.APIKey)
	}
	if len(f.KeyVariables) > 2 {
		t.Errorf("variables of credentials: %v", f.KeyVariables)
	}
	if f.Shm <= 0 || f.Shm > 64<<20 {
		t.Errorf("/dev/shm takes %d bytes", f.Shm)
	}
	if f.Processes < 100 || f.Processes > 1024 || f.ProcessesEnd != "EAGAIN" {
		t.Errorf("%d processes could be started, ended by %s", f.Processes, f.ProcessesEnd)
	}
	if info.EnforcesLimits && (f.Memory < 128 || f.Memory >= 768 || f.MemoryEnd != 9) {
		t.Errorf("%d MiB could be had of 768, ended by %d", f.Memory, f.MemoryEnd)
	}
}

// isolationAttempts checks that every attempt failed, for a reason that
// belongs to it.
func isolationAttempts(t *testing.T, attempts map[string]string) {
	t.Helper()
	if len(attempts) < 60 {
		t.Errorf("only %d attempts were made", len(attempts))
	}
	for name, end := range attempts {
		switch {
		case name == "resolve" && end == "-3": // EAI_AGAIN: there is no name server
		case name == "sysrq" && end == "ENOENT": // a kernel without
		case !slices.Contains([]string{"EPERM", "EACCES", "EROFS", "ENETUNREACH", "ENODEV", "ENOSYS", "EAFNOSUPPORT", "EADDRNOTAVAIL", "ENOENT", "EINVAL"}, end):
			t.Errorf("%s: %s", name, end)
		case end == "ENOENT" || end == "EINVAL":
			t.Errorf("%s failed with %s, which proves nothing", name, end)
		case strings.Contains(name, "/run/stromboli") && end != "EACCES":
			t.Errorf("%s: %s, want EACCES", name, end)
		}
	}
}

// isolationFromOutside looks at the running sandbox from the host.
func isolationFromOutside(s *server, id string, asked stromboli.PodmanOptions, info engine.Info) {
	s.t.Helper()
	t := s.t
	c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+id)
	if err != nil {
		t.Fatal(err)
	}
	f := c.InForce
	if !f.ReadOnlyRoot || !f.NoNewPrivileges || f.Privileged || f.Network != "none" || f.SeccompProfile != "default" || len(f.BoundingSet) != 3 {
		t.Errorf("in force: %+v", f)
	}
	if info.EnforcesLimits && (f.MemoryBytes != 768<<20 || f.NanoCPUs != 1e9 || f.PidsLimit != 1024 || info.LimitsSwap && f.MemorySwapBytes != f.MemoryBytes) {
		t.Errorf("limits in force for %+v: %+v", asked, f)
	}
	var rec struct{ Token string }
	b, err := os.ReadFile(filepath.Join(s.data, "sb", id, "sandbox.json"))
	if err != nil || json.Unmarshal(b, &rec) != nil || len(rec.Token) < 16 {
		t.Fatalf("the sandbox's record: %v, %s", err, b)
	}
	hc := &http.Client{Transport: unixTransport(suite.engine.Socket())}
	resp, err := hc.Get("http://podman/v4.0.0/libpod/containers/stromboli-" + id + "/json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	inspected, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(inspected, []byte(id)) {
		t.Fatalf("inspect: %v, %.200s", err, inspected)
	}
	for what, secret := range map[string]string{"credential": isolationKey, "token": rec.Token} {
		if bytes.Contains(inspected, []byte(secret)) {
			t.Errorf("inspect shows the %s", what)
		}
	}
	// All processes of the sandbox, and egress.
	looked := 0
	var processes []string
	for _, dir := range isolationProcesses(t, c.PID, s.egressPID()) {
		processes = append(processes, filepath.Base(dir)+" "+isolationName(dir))
		for _, name := range []string{"environ", "cmdline"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				continue
			}
			looked++
			for what, secret := range map[string]string{"credential": isolationKey, "token": rec.Token} {
				if bytes.Contains(data, []byte(secret)) {
					t.Errorf("%s/%s of %s shows the %s", dir, name, isolationName(dir), what)
				}
			}
		}
	}
	if looked < 6 {
		t.Errorf("only %d files of processes could be read; the processes of the sandbox %d and egress are %q", looked, c.PID, processes)
	}
}

func isolationName(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "comm"))
	return strings.TrimSpace(string(b))
}

// isolationProcesses are the directories in /proc of the processes that share
// a mount namespace with init, and of others.
func isolationProcesses(t *testing.T, init int, others ...int) []string {
	t.Helper()
	dir := func(pid int) string { return filepath.Join("/proc", itoa(pid)) }
	dirs := []string{dir(init)}
	for _, pid := range others {
		dirs = append(dirs, dir(pid))
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for changed := true; changed; {
		changed = false
		for _, e := range entries {
			d := filepath.Join("/proc", e.Name())
			if _, err := strconv.Atoi(e.Name()); err != nil || slices.Contains(dirs, d) {
				continue
			}
			b, err := os.ReadFile(filepath.Join(d, "stat"))
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
			if f := strings.Fields(rest); len(f) > 1 && f[1] != "1" && slices.Contains(dirs, "/proc/"+f[1]) {
				dirs, changed = append(dirs, d), true
			}
		}
	}
	return dirs
}

// isolationSearch looks for the credential in every file below a directory.
func isolationSearch(t *testing.T, dir string) {
	t.Helper()
	looked := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		looked++
		if bytes.Contains(data, []byte(isolationKey)) {
			t.Errorf("%s holds the credential", path)
		}
		return err
	})
	if err != nil || looked < 5 {
		t.Errorf("searched %d files: %v", looked, err)
	}
}
