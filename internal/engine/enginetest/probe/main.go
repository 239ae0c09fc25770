// Command probe is the first process of the containers that engine tests make:
// a static program with a mode per question. It tells what it sees by files
// and sockets in mounted directories.
package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	mode, arg := "", ""
	if len(args) > 0 {
		mode = args[0]
	}
	if len(args) > 1 {
		arg = args[1]
	}
	switch mode {
	case "exit": // exit N
		n, _ := strconv.Atoi(arg)
		return n
	case "sleep": // sleep [DIR]: says ready, ignores TERM
		signal.Ignore(syscall.SIGTERM)
		ready(arg)
		forever()
	case "term": // term [DIR]: says ready, ends with 0 on TERM
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		ready(arg)
		<-signals
		return 0
	case "count": // count DIR: how often it has run, by a file in its root, to DIR/count
		return count(arg)
	case "dial": // dial SOCKET: connects and stays
		signal.Ignore(syscall.SIGTERM)
		conn, err := new(net.Dialer).DialContext(context.Background(), "unix", arg)
		if err != nil {
			return 3
		}
		_, _ = conn.Write([]byte("ready"))
		forever()
	case "alloc": // alloc MIB: touches that much memory
		n, _ := strconv.Atoi(arg)
		var kept [][]byte
		for range n {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			kept = append(kept, b)
		}
		return len(kept) * 0
	case "report": // report DIR: writes what it sees to DIR/report.json
		return report(arg)
	case "threads": // threads N DIR: processes that it could start
		return spawn(arg, args[2])
	}
	return 2
}

// forever blocks in the kernel: an empty select alone would count as a deadlock.
func forever() {
	for {
		_ = syscall.Pause()
	}
}

func ready(dir string) {
	if dir != "" {
		_ = os.WriteFile(filepath.Join(dir, "ready"), nil, 0o644)
	}
}

func report(dir string) int {
	seen := map[string]string{}
	for _, f := range []string{"/proc/self/status", "/proc/self/mounts", "/proc/self/limits", "/etc/hosts", "/proc/self/uid_map", "/proc/net/dev"} {
		data, _ := os.ReadFile(f)
		seen[f] = string(data)
	}
	seen["hostname"], _ = os.Hostname()
	seen["cwd"], _ = os.Getwd()
	for _, kv := range os.Environ() {
		seen["env "+kv] = ""
	}
	tries := map[string]func() error{
		"write /":    func() error { return os.WriteFile("/x", nil, 0o644) },
		"write /run": func() error { return os.WriteFile("/run/x", nil, 0o644) },
		"write /tmp": func() error { return os.WriteFile("/tmp/x", nil, 0o644) },
		"write ro":   func() error { return os.WriteFile("/ro/x", nil, 0o644) },
		"mount":      func() error { return syscall.Mount("none", "/tmp", "tmpfs", 0, "") },
		"chown":      func() error { return os.Chown(filepath.Join(dir, "report.json"), 1, 1) },
	}
	_ = os.WriteFile(filepath.Join(dir, "report.json"), nil, 0o644)
	for name, try := range tries {
		seen[name] = "ok"
		if err := try(); err != nil {
			seen[name] = err.Error()
		}
	}
	data, err := json.Marshal(seen)
	if err != nil {
		return 4
	}
	if err := os.WriteFile(filepath.Join(dir, "report.json"), data, 0o644); err != nil {
		return 5
	}
	return 0
}

// spawn starts up to n sleeping copies of itself and writes how many it got.
func spawn(arg, dir string) int {
	n, _ := strconv.Atoi(arg)
	started := 0
	for range n {
		p, err := os.StartProcess("/probe", []string{"/probe", "sleep"}, &os.ProcAttr{})
		if err != nil {
			break
		}
		_ = p.Release()
		started++
	}
	if os.WriteFile(filepath.Join(dir, "started"), []byte(strconv.Itoa(started)), 0o644) != nil {
		return 6
	}
	return 0
}

func count(dir string) int {
	runs, _ := os.ReadFile("/tmp/runs")
	runs = append(runs, 'x')
	if os.WriteFile("/tmp/runs", runs, 0o600) != nil {
		return 7
	}
	if os.WriteFile(filepath.Join(dir, "count"), runs, 0o644) != nil {
		return 8
	}
	return 0
}
