package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

type runCommand struct {
	Prompt []string `arg:"" optional:"" help:"What the agent is asked to do; - reads it from standard input."`

	Serve  bool   `help:"Serve for the time of the run, if no server runs on this data directory."`
	Demo   bool   `help:"With --serve: answer with the built-in scripted model; needs no credentials."`
	Server string `placeholder:"URL" help:"The server to use. Default: STROMBOLI_URL, else the one that runs on this data directory."`

	Workdir        string        `short:"C" help:"Working directory in the sandbox."`
	Volume         []string      `short:"v" sep:"none" help:"Mount host:container[:ro]; below STROMBOLI_AGENT_ALLOWED_VOLUMES only."`
	Image          string        `help:"The sandbox's image."`
	Model          string        `help:"The model's name or alias."`
	Session        string        `help:"The session: a UUID, or an alias of yours."`
	Resume         bool          `help:"Go on with --session."`
	Timeout        time.Duration `help:"Time limit of the run."`
	Memory         string        `help:"Memory limit, such as 2g."`
	CPUs           string        `name:"cpus" help:"CPU limit, such as 1.5."`
	PermissionMode string        `help:"What the agent may do unasked. Default: everything, since the sandbox holds it."`
}

// Help is shown after the flags.
func (runCommand) Help() string {
	return "The agent's work goes to standard error as it happens, its answer to standard output. " +
		"STROMBOLI_TOKEN is the token for a server with authentication."
}

const defaultPrompt = "Look around in your sandbox: who are you, where are you, what is there? Then write a greeting into a file and tell what you did."

// Run carries out one run.
func (c runCommand) Run(ctx context.Context, p process) error {
	prompt, err := c.prompt(p.stdin)
	if err != nil {
		return err
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	// The server stops after the run, whatever became of the run.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	at, wait, err := c.server(serving, cfg, p)
	if err != nil {
		stop()
		return err
	}
	code, err := c.watch(ctx, at, prompt, p)
	stop()
	if werr := wait(); err == nil {
		err = werr
	}
	if err == nil && code != 0 {
		return exitError(code)
	}
	return err
}

func (c runCommand) prompt(stdin io.Reader) (string, error) {
	prompt := strings.Join(c.Prompt, " ")
	if prompt != "-" {
		if prompt == "" {
			prompt = defaultPrompt
		}
		return prompt, nil
	}
	b, err := io.ReadAll(io.LimitReader(stdin, 10<<20))
	if err != nil {
		return "", fmt.Errorf("reading the prompt: %w", err)
	}
	return string(b), nil
}

// server returns the server to use and a function that waits for the one that
// was started here.
func (c runCommand) server(ctx context.Context, cfg *config.Config, p process) (at reach, wait func() error, err error) {
	nothing := func() error { return nil }
	settings, err := config.LoadClient(p.environ)
	if err != nil {
		return at, nil, err
	}
	at.token = string(settings.Token)
	if at.tls, err = trust(settings.CAFile); err != nil {
		return at, nil, err
	}
	if at.url = cmp.Or(c.Server, settings.URL); at.url != "" {
		return at, nothing, nil
	}
	if !c.Serve {
		if at.url = readAddress(cfg.DataDir); at.url == "" {
			return at, nil, fmt.Errorf("no server runs on the data directory %s: start one with `stromboli serve`, or add --serve", cfg.DataDir)
		}
		return at, nothing, at.local(cfg)
	}
	if c.Demo {
		_, _ = fmt.Fprintln(p.stderr, "stromboli: DEMO: the model is a built-in script; Podman, sandbox, agent CLI and its tools are real")
	}
	cfg.Metrics.Enabled = false // for one run
	cfg.Server.Address, cfg.TLS = "127.0.0.1:0", config.TLS{}
	started := make(chan string, 1)
	ended := make(chan error, 1)
	var once sync.Once
	own := stromboli.NewToken() // whatever else it knows, the server knows us
	s := server{
		cfg: cfg, environ: p.environ, demo: c.Demo, logs: quietLogs(cfg, p), ownToken: own,
		ready: func(url string) { started <- url },
	}
	go func() { ended <- s.serve(ctx) }()
	var result error
	wait = func() error {
		once.Do(func() { result = <-ended })
		return result
	}
	select {
	case url := <-started:
		return reach{url: url, token: own}, wait, nil
	case err := <-ended:
		var inUse errInUse
		if errors.As(err, &inUse) && inUse.address != "" {
			_, _ = fmt.Fprintln(p.stderr, "stromboli: using the server that runs already at", inUse.address)
			at.url = inUse.address
			return at, nothing, at.local(cfg)
		}
		if err == nil {
			err = errors.New("the server stopped before it had started")
		}
		return at, nil, err
	}
}

// quietLogs keeps a server's routine out of a person's way.
func quietLogs(cfg *config.Config, p process) *telemetry.Log {
	log := cfg.Log
	if log.Level == "info" {
		log.Level = "warn"
	}
	return newLogs(log, p)
}

func (c runCommand) spec(prompt string) stromboli.RunSpec {
	return stromboli.RunSpec{
		Prompt:  prompt,
		Workdir: c.Workdir,
		Claude: stromboli.ClaudeOptions{
			SessionID: c.Session, Resume: c.Resume, Model: c.Model, PermissionMode: c.PermissionMode,
			DangerouslySkipPermissions: c.PermissionMode == "",
		},
		Podman: stromboli.PodmanOptions{
			Image: c.Image, Volumes: c.Volume, Memory: c.Memory, CPUs: c.CPUs, Timeout: stromboli.Duration(c.Timeout),
		},
	}
}

// watch submits the run, prints what happens, and returns the exit code. When
// ctx ends it cancels the run and waits for its end.
func (c runCommand) watch(ctx context.Context, at reach, prompt string, p process) (int, error) {
	api, err := client.New(client.Config{BaseURL: at.url, Token: at.token, TLS: at.tls})
	if err != nil {
		return 0, err
	}
	defer api.CloseIdle()
	screen := &show{w: p.stderr, start: time.Now()}
	job, err := api.RunAsync(ctx, c.spec(prompt))
	if errors.Is(err, stromboli.Unauthenticated) {
		return 0, fmt.Errorf("%s: %w; STROMBOLI_TOKEN has the token", at.url, err)
	}
	if err != nil {
		return 0, err
	}
	screen.line("·", "run "+job.JobID+", session "+job.SessionID)

	after := context.WithoutCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		screen.line("!", "cancelling")
		cancelCtx, done := context.WithTimeout(after, 10*time.Second)
		defer done()
		if err := api.Cancel(cancelCtx, job.JobID); err != nil && !errors.Is(err, stromboli.Conflict) {
			screen.line("!", "cancelling: "+err.Error())
		}
	})
	defer stop()
	for e, err := range api.Events(after, job.JobID, 0) {
		if err != nil {
			return 0, err
		}
		screen.event(e)
	}
	end, err := api.Job(after, job.JobID)
	if err != nil {
		return 0, err
	}
	return c.report(p, screen, end), nil
}

func (c runCommand) report(p process, screen *show, end client.Job) int {
	code := exitCode(end.Status, end.Reason)
	if end.Output != "" && !terminal(p.stdout) { // there it was shown already
		_, _ = fmt.Fprintln(p.stdout, end.Output)
	}
	summary := string(end.Status)
	if end.Reason != "" {
		summary += " (" + string(end.Reason) + ")"
	}
	if end.Error != "" {
		summary += ": " + end.Error
	}
	if u := end.Usage; u != nil {
		summary += fmt.Sprintf(" · %s · %d tokens · about $%.4f", u.Model, u.TotalTokens, u.EstimatedCostUSD)
	}
	screen.line("■", summary)
	return code
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
