// Command stromboli runs Claude Code agents in isolated Podman sandboxes behind
// a REST and SSE API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// Set by the linker.
var (
	version = "dev"
	commit  = "unknown" //nolint:gochecknoglobals // the linker can set nothing else
)

func main() {
	ctx, stop := signalContext(context.Background())
	code := run(ctx, process{
		args: os.Args[1:], environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
	})
	stop()
	os.Exit(code)
}

// signalContext ends at the first SIGINT or SIGTERM; a second one ends the
// process at once.
func signalContext(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-parent.Done():
			return
		}
		if _, ok := <-signals; ok {
			os.Exit(exitCancelled)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}

// process is what a command gets from the operating system.
type process struct {
	args    []string
	environ []string
	// configFile is what --config names; empty: nothing.
	configFile string
	stdin      io.Reader
	stdout     io.Writer
	stderr     io.Writer
}

// commands is the command line.
type commands struct {
	ConfigFile string `name:"config" type:"path" placeholder:"FILE" help:"The configuration file. Default: ./stromboli.yaml, ~/.stromboli/stromboli.yaml or /etc/stromboli/stromboli.yaml, the first that is there."`

	Serve   serveCommand      `cmd:"" default:"withargs" help:"Serve the API; also without a command."`
	Run     runCommand        `cmd:"" help:"Run a prompt and print what the agent does. The exit code is the run's outcome: 0 completed, 1 failed, 3 crashed, 124 timeout, 130 cancelled."`
	Setup   setupCommand      `cmd:"" help:"Fetch the agent CLI and prepare the agent image."`
	Doctor  doctorCommand     `cmd:"" help:"Examine this host: what works, what doesn't, what to do."`
	Config  configCommand     `cmd:"" help:"Print or check the configuration."`
	Secrets secretsCommand    `cmd:"" help:"Keep the server's secrets."`
	Audit   auditCommand      `cmd:"" help:"Look after the audit log."`
	Backup  backupCommand     `cmd:"" help:"Copy the server's data, while it runs or not."`
	Restore restoreCommand    `cmd:"" help:"Put a backup into an empty data directory."`
	GC      gcCommand         `cmd:"" name:"gc" help:"Delete now what is older than its setting says, or tell what would go."`
	Bench   benchCommand      `cmd:"" help:"Measure the start of a run against the bare CLI and podman run."`
	Version versionCommand    `cmd:"" help:"Print the version."`
	Probe   benchProbeCommand `cmd:"" hidden:"" name:"bench-probe" help:"Measure a source over the network; used by bench."`
	Bare    benchBareCommand  `cmd:"" hidden:"" name:"bench-bare" help:"Answer every request with one text; used by bench."`
	Egress  egressCommand     `cmd:"" hidden:"" help:"The network side of the sandboxes; started by serve."`
}

// exitError is an error whose message was printed already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run executes one command line and returns the exit code.
func run(ctx context.Context, p process) int {
	var cli commands
	exited := -1
	parser, err := kong.New(&cli,
		kong.Name("stromboli"),
		kong.Description("Claude Code agents in isolated Podman sandboxes, behind a REST and SSE API."),
		kong.Writers(p.stdout, p.stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		return fail(p, err)
	}
	command, err := parser.Parse(p.args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		return fail(p, err)
	}
	command.BindTo(ctx, (*context.Context)(nil))
	p.configFile = cli.ConfigFile
	command.Bind(p)
	if err := command.Run(); err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			return int(exit)
		}
		return fail(p, err)
	}
	return 0
}

func fail(p process, err error) int {
	_, _ = fmt.Fprintln(p.stderr, "stromboli:", err)
	return 1
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(p process) error {
	_, err := fmt.Fprintf(p.stdout, "stromboli %s (%s)\n", version, commit)
	return err
}
