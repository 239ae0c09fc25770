package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keptThreads is the number of threads that the shim makes sure to have: for
// two processors, the signal handler, blocking system calls and some to spare.
const keptThreads = 12

// initProcess is the shim at work.
type initProcess struct {
	cfg     Config
	hostDir string
	// secretsDir has the files of the engine's secrets.
	secretsDir string
	bootID     string
	errOut     io.Writer
	reaper     *reaper
	helpers    *helpers
	spool      *spool
	oom        oomCounter
	agent      *agent
	exit       chan struct{} // closed when the server discards the sandbox

	complaints atomic.Int64
}

// Main is the shim's main function: os.Args in, exit code out. Started without
// arguments it is a sandbox's PID 1; it starts itself again as helpers. By the
// name ConnectName it is the agent's ProxyCommand.
//
// It runs until the server discards the sandbox. Its goroutines, other than
// those of a connection, are never stopped: they end with the sandbox.
func Main(args []string) int {
	if len(args) > 0 && filepath.Base(args[0]) == ConnectName {
		return connectMain(args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	if len(args) > 1 && args[1] == helperArg {
		return helperMain(args[2:], os.Stdin, os.Stdout, os.Stderr)
	}
	if err := runInit(args, os.Stderr); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "stromboli-shim:", err)
		return 1
	}
	return 0
}

func runInit(args []string, errOut io.Writer) error {
	flags := flag.NewFlagSet("stromboli-shim", flag.ContinueOnError)
	hostDir := flags.String("host", DefaultHostDir, "directory with the configuration and the sockets")
	runDir := flags.String("run", DefaultRunDir, "directory for the spool, made private")
	if err := flags.Parse(args[min(1, len(args)):]); err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return errors.New("must be PID 1: it ends processes by their uid")
	}
	runtime.GOMAXPROCS(min(2, runtime.GOMAXPROCS(0)))
	warmThreads(keptThreads)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become non-dumpable: %w", err)
	}
	cfg, err := readConfig(filepath.Join(*hostDir, ConfigName))
	if err != nil {
		return err
	}
	if !cfg.Unfiltered {
		if err := confine(); err != nil {
			return err
		}
	}
	if err := os.Chmod(*runDir, 0o700); err != nil { //nolint:gosec // a directory
		return fmt.Errorf("make the run directory private: %w", err)
	}
	sp, err := newSpool(filepath.Join(*runDir, "spool"), cfg.SpoolLimitBytes)
	if err != nil {
		return err
	}
	in := &initProcess{
		cfg: cfg, hostDir: *hostDir, secretsDir: filepath.Join(*runDir, filepath.Base(SecretsDir)), bootID: newBootID(), errOut: errOut, reaper: newReaper(), spool: sp,
		oom: findOOMCounter("/sys/fs/cgroup", "/proc/self/cgroup"), exit: make(chan struct{}),
	}
	in.helpers = newHelpers(in.reaper)
	in.agent = newAgent(in)
	return in.run()
}

// run starts the parts and returns when the sandbox is discarded. The end of
// PID 1 is the end of every process of the sandbox.
func (in *initProcess) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if in.cfg.ForwardAddr != "-" {
		f := newForwarder(in.cfg, filepath.Join(in.hostDir, EgressSocket))
		if err := f.listen(ctx); err != nil {
			return err
		}
		go f.serve(ctx)
	}
	go in.reaper.run(ctx.Done())
	go in.dial(ctx)

	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	// Caught, since a write to a stderr that nobody reads would end us else;
	// not ignored, since the agent would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	for {
		select {
		case <-in.exit:
			return nil
		case <-term:
			// Whoever stops the container from outside ends the agent; its
			// output still waits for the server, as long as we are left.
			in.agent.endIfRunning("")
		}
	}
}

// maxComplaints bounds what is written to a log that perhaps nobody reads.
const maxComplaints = 200

// complain writes to the container's log, where there is one.
func (in *initProcess) complain(err error) {
	if in.complaints.Add(1) > maxComplaints {
		return
	}
	_, _ = fmt.Fprintln(in.errOut, "stromboli-shim:", err)
}

// pauseFor waits; the shim has nobody who could call it off.
func (in *initProcess) pauseFor(d time.Duration) { <-time.After(d) }
