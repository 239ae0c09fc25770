package claude

import (
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Session says which conversation the CLI works on.
type Session struct {
	ID     string // a UUID, the CLI's own id of the conversation
	Resume bool   // go on with it; else it is new
	ForkOf string // if set, the new conversation begins as a copy of this one
}

// Args is the CLI's command line after the program's name. The CLI is always
// driven by its stream-json protocol in both directions; how the run's output
// is rendered is a matter of Turn.
//
// Values are attached to their flags by "=", because several flags would take
// the following words for theirs. The options must have passed Validate.
func Args(o stromboli.ClaudeOptions, s Session) []string {
	args := []string{"-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose"}
	switch {
	case s.Resume:
		args = append(args, "--resume="+s.ID)
	case s.ForkOf != "":
		args = append(args, "--resume="+s.ForkOf, "--fork-session", "--session-id="+s.ID)
	default:
		args = append(args, "--session-id="+s.ID)
	}
	if o.NoPersistence {
		args = append(args, "--no-session-persistence")
	}
	text := func(flag, value string) {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	text("--model", o.Model)
	text("--system-prompt", o.SystemPrompt)
	text("--append-system-prompt", o.AppendSystemPrompt)
	// One flag for each pattern: they add up, and a comma in a pattern stays
	// what it is.
	for _, tool := range o.AllowedTools {
		text("--allowedTools", tool)
	}
	for _, tool := range o.DisallowedTools {
		text("--disallowedTools", tool)
	}
	text("--permission-mode", o.PermissionMode)
	if o.DangerouslySkipPermissions {
		args = append(args, "--dangerously-skip-permissions")
	}
	if o.IncludePartialMessages {
		args = append(args, "--include-partial-messages")
	}
	text("--json-schema", o.JSONSchema)
	if o.MaxTurns != nil {
		args = append(args, "--max-turns="+strconv.Itoa(*o.MaxTurns))
	}
	if o.MaxBudgetUSD != nil {
		args = append(args, "--max-budget-usd="+strconv.FormatFloat(*o.MaxBudgetUSD, 'f', -1, 64))
	}
	return append(args, more(o)...)
}

// more are the flags of the options that most runs don't have.
func more(o stromboli.ClaudeOptions) []string {
	var args []string
	text := func(flag, value string) {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	each := func(flag string, values []string) {
		for _, v := range values {
			text(flag, v)
		}
	}
	flag := func(name string, set bool) {
		if set {
			args = append(args, name)
		}
	}
	text("--fallback-model", o.FallbackModel)
	if len(o.Tools) > 0 { // "" alone is no tool at all
		args = append(args, "--tools="+strings.Join(o.Tools, ","))
	}
	flag("--allow-dangerously-skip-permissions", o.AllowDangerouslySkipPermissions)
	flag("--replay-user-messages", o.ReplayUserMessages)
	text("--effort", o.Effort)
	text("--agents", string(o.Agents))
	text("--agent", o.Agent)
	each("--add-dir", o.AddDirs)
	each("--mcp-config", o.MCPConfigs)
	flag("--strict-mcp-config", o.StrictMCPConfig)
	each("--plugin-dir", o.PluginDirs)
	text("--settings", o.Settings)
	if len(o.SettingSources) > 0 { // "" alone is none of them
		args = append(args, "--setting-sources="+strings.Join(o.SettingSources, ","))
	}
	each("--betas", o.Betas)
	flag("--disable-slash-commands", o.DisableSlashCommands)
	if o.Debug != "" { // without the second flag the lines go into a file of the home
		args = append(args, "--debug="+o.Debug, "--debug-to-stderr")
	}
	return args
}
