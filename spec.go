package stromboli

import (
	"encoding/json"
	"time"
)

// OnDisconnect says what becomes of a run whose caller goes away.
type OnDisconnect string

// A lost client does not end a run unless it said so before.
const (
	OnDisconnectContinue OnDisconnect = "continue"
	OnDisconnectCancel   OnDisconnect = "cancel"
)

// OutputFormat is the form of a run's output.
type OutputFormat string

// The output formats. All three are rendered from the same events.
const (
	OutputText       OutputFormat = "text"
	OutputJSON       OutputFormat = "json"
	OutputStreamJSON OutputFormat = "stream-json"
)

// InputFormat is the form of a run's prompt.
type InputFormat string

// The input formats.
const (
	InputText       InputFormat = "text"
	InputStreamJSON InputFormat = "stream-json"
)

// RunSpec is what a caller asks for. Its JSON form is the body of the run
// endpoints; a zero field is unset.
type RunSpec struct {
	// Prompt is the message to the agent. Required, not blank.
	Prompt string `json:"prompt"`
	// Workdir is the agent's working directory: an absolute path in the
	// sandbox. A directory of the host below the allowed ones is mounted at the
	// same path where no volume covers it. Unset: /workspace.
	Workdir string `json:"workdir,omitempty"`
	// WebhookURL is told of the end of an async run: an http or https URL.
	WebhookURL string `json:"webhook_url,omitempty"`
	// OnDisconnect: continue (the default) or cancel.
	OnDisconnect OnDisconnect `json:"on_disconnect,omitempty"`
	// Metadata are labels of the caller's, at most 32.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Content are images, documents and texts that come before the prompt in
	// the same message.
	Content []ContentBlock `json:"content,omitempty"`
	// Env are environment variables of the agent and its tools. Names that are
	// the server's or the CLI's own are refused.
	Env map[string]string `json:"env,omitempty"`
	// BackgroundWait is how long a run whose agent has answered waits for its
	// background tasks; zero doesn't wait. Unset: the server's default.
	BackgroundWait *Duration `json:"background_wait,omitempty"`

	// Network is what the run may reach, within what the server permits. Unset:
	// the server's default.
	Network Network `json:"network,omitzero"`
	// Bindings put secrets on requests to hosts, outside of the sandbox, at most
	// 20.
	Bindings []Binding `json:"bindings,omitempty"`

	Claude ClaudeOptions `json:"claude,omitzero"`
	Podman PodmanOptions `json:"podman,omitzero"`
}

// ClaudeOptions are options of the agent CLI.
type ClaudeOptions struct {
	// SessionID names a new session or, with Resume, an existing one: by its
	// UUID, or by an alias of the caller's.
	SessionID string `json:"session_id,omitempty"`
	// Resume goes on with the session named by SessionID.
	Resume bool `json:"resume,omitempty"`
	// Continue goes on with the most recent conversation in the workspace and
	// ignores SessionID.
	Continue bool `json:"continue,omitempty"`
	// ForkSession, with Resume or Continue, works on a copy of the session, which
	// becomes a session of its own.
	ForkSession bool `json:"fork_session,omitempty"`
	// NoPersistence keeps nothing of the conversation.
	NoPersistence bool `json:"no_persistence,omitempty"`
	// Model is a model's name or alias (opus, sonnet, haiku).
	Model string `json:"model,omitempty"`
	// SystemPrompt replaces the CLI's system prompt.
	SystemPrompt string `json:"system_prompt,omitempty"`
	// AppendSystemPrompt is added to the CLI's system prompt.
	AppendSystemPrompt string `json:"append_system_prompt,omitempty"`
	// AllowedTools are tool patterns that need no permission, such as
	// "Bash(git:*)".
	AllowedTools []string `json:"allowed_tools,omitempty"`
	// DisallowedTools are tool patterns that are denied in every mode.
	DisallowedTools []string `json:"disallowed_tools,omitempty"`
	// PermissionMode: acceptEdits, bypassPermissions, default, dontAsk or plan.
	PermissionMode string `json:"permission_mode,omitempty"`
	// DangerouslySkipPermissions lets the agent use every tool unasked. The
	// sandbox is what holds it then.
	DangerouslySkipPermissions bool `json:"dangerously_skip_permissions,omitempty"`
	// OutputFormat: text (the default), json or stream-json.
	OutputFormat OutputFormat `json:"output_format,omitempty"`
	// IncludePartialMessages adds events for the deltas of an answer.
	IncludePartialMessages bool `json:"include_partial_messages,omitempty"`
	// JSONSchema is a JSON Schema object, as a string, that the agent's final
	// answer must satisfy; see Outcome.StructuredOutput.
	JSONSchema string `json:"json_schema,omitempty"`
	// MaxTurns bounds the model rounds; 0 is unlimited, unset the CLI's default.
	MaxTurns *int `json:"max_turns,omitempty"`
	// MaxBudgetUSD ends the run when its estimated cost has passed this.
	MaxBudgetUSD *float64 `json:"max_budget_usd,omitempty"`
	// Timeout counts from the first message to the agent.
	Timeout Duration `json:"timeout,omitempty"`

	// FallbackModel takes over when the model is overloaded; several are
	// separated by commas.
	FallbackModel string `json:"fallback_model,omitempty"`
	// Tools are the built-in tools that the agent has: names, or "default"
	// alone for all, or "" alone for none.
	Tools []string `json:"tools,omitempty"`
	// AllowDangerouslySkipPermissions would let a client turn to
	// bypassPermissions later; a run's mode never changes, so that it has no
	// effect but a warning.
	AllowDangerouslySkipPermissions bool `json:"allow_dangerously_skip_permissions,omitempty"`
	// InputFormat is the form of RunSpec.Prompt: text (the default), or
	// stream-json: one user message as the CLI reads it.
	InputFormat InputFormat `json:"input_format,omitempty"`
	// ReplayUserMessages repeats the message among the lines of the output.
	ReplayUserMessages bool `json:"replay_user_messages,omitempty"`
	// Effort: low, medium, high, xhigh or max.
	Effort string `json:"effort,omitempty"`
	// Agent is the name of the agent that answers: one of Agents, or one that
	// the workspace or a plugin has.
	Agent string `json:"agent,omitempty"`
	// Agents are further agents by name, a JSON object of objects with
	// "description" and "prompt".
	Agents json.RawMessage `json:"agents,omitempty"`
	// AddDirs are further directories of the sandbox that the agent works in.
	AddDirs []string `json:"add_dirs,omitempty"`
	// Files are written into the sandbox before the agent starts; each is a
	// JSON object, as a string: {"path","content","encoding"}.
	Files []string `json:"files,omitempty"`
	// MCPConfigs are MCP servers: paths in the sandbox, or JSON.
	MCPConfigs []string `json:"mcp_configs,omitempty"`
	// StrictMCPConfig leaves out all MCP servers but those of MCPConfigs.
	StrictMCPConfig bool `json:"strict_mcp_config,omitempty"`
	// PluginDirs are directories of the sandbox that hold a plugin each.
	PluginDirs []string `json:"plugin_dirs,omitempty"`
	// Settings are further settings: a path in the sandbox, or JSON.
	Settings string `json:"settings,omitempty"`
	// SettingSources are the settings files that count: user, project, local;
	// "" alone for none. Unset: all three.
	SettingSources []string `json:"setting_sources,omitempty"`
	// Betas are the betas that the CLI lets through.
	Betas []string `json:"betas,omitempty"`
	// DisableSlashCommands leaves out commands and skills.
	DisableSlashCommands bool `json:"disable_slash_commands,omitempty"`
	// Debug are categories of debug lines, which come on standard error.
	Debug string `json:"debug,omitempty"`
	// Verbose makes the output in the format json a list of all lines.
	Verbose bool `json:"verbose,omitempty"`
	// PromptCachingTTL is how long the model's API keeps prompts: 5m or 1h.
	PromptCachingTTL string `json:"prompt_caching_ttl,omitempty"`
	// BedrockServiceTier is refused: Bedrock is not supported.
	BedrockServiceTier string `json:"bedrock_service_tier,omitempty"`
	// EnablePowershellTool offers the PowerShell tool.
	EnablePowershellTool bool `json:"enable_powershell_tool,omitempty"`
}

// ContentBlock is a part of the message to the agent, as in the Messages API.
type ContentBlock struct {
	// Type: text, image or document.
	Type string `json:"type"`
	// Text of a text block.
	Text string `json:"text,omitempty"`
	// Source of an image or a document.
	Source *ContentSource `json:"source,omitempty"`
	// Title and Context of a document.
	Title   string `json:"title,omitempty"`
	Context string `json:"context,omitempty"`
}

// ContentSource holds an image or a document.
type ContentSource struct {
	// Type: base64, or text for a plain document.
	Type string `json:"type"`
	// MediaType: image/png, image/jpeg, image/gif or image/webp; of documents
	// application/pdf, or text/plain where the type is text.
	MediaType string `json:"media_type"`
	// Data in that form.
	Data string `json:"data"`
}

// PodmanOptions are options of the sandbox.
type PodmanOptions struct {
	// Image is the sandbox's image. Unset: the server's agent image.
	Image string `json:"image,omitempty"`
	// Volumes are "host:container[:options]" mounts; options are ro, rw, noexec,
	// nosuid, nodev, z and Z, separated by commas.
	Volumes []string `json:"volumes,omitempty"`
	// SecretsEnv gives the agent secrets as environment variables: the secrets'
	// names by the variables'. engine:NAME is one that the container engine
	// keeps, where configuration permits it.
	SecretsEnv map[string]string `json:"secrets_env,omitempty"`
	// Memory is a size such as "512m" or "2g".
	Memory string `json:"memory,omitempty"`
	// CPUs is a decimal number of CPUs such as "0.5".
	CPUs string `json:"cpus,omitempty"`
	// CPUShares is the relative weight under contention, 2 to 262144.
	CPUShares *int `json:"cpu_shares,omitempty"`
	// Timeout counts from the sandbox's creation.
	Timeout Duration `json:"timeout,omitempty"`
	// Lifecycle are commands that are run in the sandbox before the agent.
	Lifecycle Lifecycle `json:"lifecycle,omitzero"`
}

// Duration is a time.Duration whose JSON form is a Go duration string such as
// "90s" or "1h30m". Zero is unset.
type Duration time.Duration

// MarshalJSON writes d as a string.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON reads a string; the empty string is zero.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == "" {
		*d = 0
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}
