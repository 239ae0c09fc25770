package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// pixel is a PNG image of one point.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

// mcpProgram is an MCP server with one tool.
const mcpProgram = `import sys, json
for line in sys.stdin:
    m = json.loads(line)
    if "id" not in m:
        continue
    r = {}
    if m["method"] == "initialize":
        r = {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}
    if m["method"] == "tools/list":
        r = {"tools": [{"name": "ping", "description": "d", "inputSchema": {"type": "object"}}]}
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}), flush=True)
`

const mcpConfig = `{"mcpServers":{"evidence":{"command":"python3","args":["/workspace/mcp.py"]}}}`

// file is an element of claude.files.
func file(path, content string) string {
	b, err := json.Marshal(map[string]string{"path": path, "content": content})
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(b)
}

// evidenceScenes are the common parts of pairs.
func evidenceScenes() map[string]scene {
	unasked := func(in *stromboli.RunSpec) { in.Claude.DangerouslySkipPermissions = false }
	files := func(all ...string) func(*stromboli.RunSpec) {
		return func(in *stromboli.RunSpec) { in.Claude.Files = all }
	}
	touch := bash("touch /workspace/made; ls /workspace")
	done := text("done")
	return map[string]scene{
		"plain":   {steps: []modelstub.Step{done}},
		"unasked": {[]modelstub.Step{touch, done}, unasked},
		"asked":   {[]modelstub.Step{touch, done}, nil},
		"write":   {[]modelstub.Step{tool("Write", `{"file_path":"/workspace/made","content":"x"}`), done}, unasked},
		"shell":   {steps: []modelstub.Step{bash(`echo "<$EVIDENCE>"; cat /workspace/evidence.txt`), done}},
		"proxy":   {steps: []modelstub.Step{bash("curl -s --max-time 20 http://host.invalid/"), done}},
		"late":    {steps: []modelstub.Step{{Text: "done", DelayMS: 8000}}},
		"schema":  {steps: []modelstub.Step{tool("StructuredOutput", `{"n":7}`), done}},
		"busy":    {steps: []modelstub.Step{{Text: "done", Status: 529, Times: 3}}},
		"background": {steps: []modelstub.Step{
			tool("Bash", `{"command":"sleep 4; echo over","description":"test","run_in_background":true}`), done, text("it is over"),
		}},
		"lines": {[]modelstub.Step{done}, func(in *stromboli.RunSpec) { in.Claude.OutputFormat = stromboli.OutputStreamJSON }},
		"json":  {[]modelstub.Step{done}, func(in *stromboli.RunSpec) { in.Claude.OutputFormat = stromboli.OutputJSON }},
		"agents": {[]modelstub.Step{done}, func(in *stromboli.RunSpec) {
			in.Claude.Agents = json.RawMessage(`{"reviewer":{"description":"reviews","prompt":"You are REVIEWERMARK."}}`)
		}},
		"message": {[]modelstub.Step{done}, func(in *stromboli.RunSpec) { // the script in a block of its own
			in.Content = []stromboli.ContentBlock{{Type: "text", Text: in.Prompt}}
			in.Prompt = `{"type":"user","message":{"role":"user","content":"MESSAGEMARK"}}`
		}},
		"mcp":         {[]modelstub.Step{done}, files(file("/workspace/mcp.py", mcpProgram), file("mcp.json", mcpConfig))},
		"project mcp": {[]modelstub.Step{done}, files(file("/workspace/mcp.py", mcpProgram), file(".mcp.json", mcpConfig))},
		"plugin": {[]modelstub.Step{done}, files(
			file("plug/.claude-plugin/plugin.json", `{"name":"evidenceplug","version":"1.0.0","description":"d"}`),
			file("plug/commands/greet.md", "---\ndescription: greet\n---\nhello\n"))},
		"settings file":    {[]modelstub.Step{done}, files(file("deny.json", `{"permissions":{"deny":["WebFetch"]}}`))},
		"project settings": {[]modelstub.Step{done}, files(file(".claude/settings.json", `{"permissions":{"deny":["WebFetch"]}}`))},
	}
}

// evidenceRows are the fields and what shows that they have an effect.
func evidenceRows() []evidence {
	claude := func(set func(*stromboli.ClaudeOptions)) func(*stromboli.RunSpec) {
		return func(in *stromboli.RunSpec) { set(&in.Claude) }
	}
	const (
		request, initEvent, result, events, inspect, sandbox = "model request", "init event", "result", "events", "inspect", "sandbox"
	)
	reason := func(o observed) string { return string(o.Status) + " " + string(o.Reason) }
	init := func(field string) func(observed) string {
		return func(o observed) string { return o.init(field) }
	}
	count := func(typ stromboli.EventType) func(observed) string {
		return func(o observed) string { return fmt.Sprintf("%v", o.count(typ) > 0) }
	}
	output := func(o observed) string { return o.Output }
	network := func(n stromboli.Network) func(*stromboli.RunSpec) {
		return func(in *stromboli.RunSpec) { in.Network = n }
	}
	block := func(b stromboli.ContentBlock) func(*stromboli.RunSpec) {
		return func(in *stromboli.RunSpec) { in.Content = []stromboli.ContentBlock{b} }
	}
	base64 := func(kind, media, data string) stromboli.ContentBlock {
		return stromboli.ContentBlock{Type: kind, Source: &stromboli.ContentSource{Type: "base64", MediaType: media, Data: data}}
	}
	document := stromboli.ContentBlock{
		Type: "document", Title: "TITLEMARK", Context: "CONTEXTMARK",
		Source: &stromboli.ContentSource{Type: "text", MediaType: "text/plain", Data: "DOCUMENTMARK"},
	}
	image := base64("image", "image/png", pixel)
	seconds, none := stromboli.Duration(2*time.Second), stromboli.Duration(0)
	oneTurn, budget := 1, 0.000001
	const id = "0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
	return []evidence{
		{
			field: "prompt", value: "a text", where: request, shows: "the message", base: "plain", see: observed.request, has: "PROMPTMARK",
			set: func(in *stromboli.RunSpec) { in.Prompt = "PROMPTMARK " + in.Prompt },
		},
		{
			field: "workdir", value: "`/srv/here`", where: initEvent, shows: "`cwd`", base: "plain", see: init("cwd"), has: "/srv/here",
			set: func(in *stromboli.RunSpec) { in.Workdir = "/srv/here" },
		},
		{field: "webhook_url", value: "a URL", where: "webhook", shows: "a request there at the run's end", by: "TestWebhooks"},
		{field: "on_disconnect", value: "`cancel`", where: result, shows: "`cancelled`, `disconnect`, after the caller went; without it the run goes on", by: "TestAPICancelAndQueue/disconnect"},
		{
			field: "metadata", value: "`{\"team\":\"blue\"}`", where: result, shows: "`metadata`", base: "plain", see: func(o observed) string { return fmt.Sprint(o.Metadata) },
			has: "team:blue", set: func(in *stromboli.RunSpec) { in.Metadata = map[string]string{"team": "blue"} },
		},
		{field: "content", value: "blocks", where: request, shows: "the blocks before the prompt", base: "plain", see: observed.request, has: `"type":"image"`, set: block(image), as: "image"},
		{field: "content[].type", value: "`document`", where: request, shows: "a block of that type", base: "plain", see: observed.request, has: `"type":"document"`, set: block(document), as: "document"},
		{
			field: "content[].text", value: "a text", where: request, shows: "a text block", base: "plain", see: observed.request, has: "BLOCKMARK",
			set: block(stromboli.ContentBlock{Type: "text", Text: "BLOCKMARK"}),
		},
		{
			field: "content[].source.type", value: "`base64`", where: request, shows: "the source's type", base: "plain", see: observed.request, has: `"type":"base64"`,
			set: block(base64("document", "application/pdf", "JVBERi0xLjQK")),
		},
		{field: "content[].source.media_type", value: "`image/png`", where: request, shows: "the source's media type", base: "plain", see: observed.request, has: `"media_type":"image/png"`, set: block(image), as: "image"},
		{field: "content[].source.data", value: "a picture", where: request, shows: "the picture's bytes", base: "plain", see: observed.request, has: pixel, set: block(image), as: "image"},
		{field: "content[].title", value: "a text", where: request, shows: "the document's title", base: "plain", see: observed.request, has: "TITLEMARK", set: block(document), as: "document"},
		{field: "content[].context", value: "a text", where: request, shows: "the document's context", base: "plain", see: observed.request, has: "CONTEXTMARK", set: block(document), as: "document"},
		{
			field: "env", value: "`{\"EVIDENCE\":\"envmark\"}`", where: sandbox, shows: "a tool's environment", base: "shell", see: observed.tool, has: "<envmark>",
			set: func(in *stromboli.RunSpec) { in.Env = map[string]string{"EVIDENCE": "envmark"} },
		},
		{
			field: "background_wait", value: "`0s`", where: events, shows: "`background_ended` before the task's end", base: "background",
			see: count(stromboli.EventBackgroundEnded), has: "true", set: func(in *stromboli.RunSpec) { in.BackgroundWait = &none },
		},
		{
			field: "network.mode", value: "`model`", where: sandbox, shows: "what the proxy answers to `curl`", base: "proxy", see: observed.tool, has: "mode is model",
			set: network(stromboli.Network{Mode: stromboli.NetworkModel}),
		},
		{
			field: "network.allow", value: "`[\"other.invalid\"]`", where: sandbox, shows: "what the proxy answers to `curl` for another host", base: "proxy", see: observed.tool, has: "not among the hosts",
			set: network(stromboli.Network{Allow: []string{"other.invalid"}}),
		},
		{
			field: "network.deny", value: "`[\"*.invalid\"]`", where: sandbox, shows: "what the proxy answers to `curl`", base: "proxy", see: observed.tool, has: "denied by *.invalid",
			set: network(stromboli.Network{Deny: []string{"*.invalid"}}),
		},

		{
			field: "claude.session_id", value: "a UUID", where: result, shows: "`session_id`", base: "plain", see: func(o observed) string { return o.SessionID }, has: id,
			set: claude(func(o *stromboli.ClaudeOptions) { o.SessionID = id }),
		},
		{field: "claude.resume", value: "`true`", where: request, shows: "what was said in the session before", by: "TestEvidence/claude.resume"},
		{field: "claude.continue", value: "`true`", where: request, shows: "what was said in the workspace's newest session", by: "TestSessionForms"},
		{field: "claude.fork_session", value: "`true`", where: result, shows: "another `session_id`; the source stays as it was", by: "TestSessionForms"},
		{field: "claude.no_persistence", value: "`true`", where: "sandbox", shows: "no transcript and no session afterwards", by: "TestSessionForms"},
		{
			field: "claude.model", value: "`claude-test-model`", where: request, shows: "`model`", base: "plain", see: observed.request, has: `"model":"claude-test-model"`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.Model = "claude-test-model" }),
		},
		{
			field: "claude.fallback_model", value: "`claude-haiku-5-5`", where: request, shows: "`model`, after the third 529", base: "busy",
			see: func(o observed) string { return o.asked[len(o.asked)-1].Model }, has: "claude-haiku-5-5",
			set: claude(func(o *stromboli.ClaudeOptions) { o.FallbackModel = "claude-haiku-5-5" }),
		},
		{
			field: "claude.system_prompt", value: "a text", where: request, shows: "`system` without the CLI's own", base: "plain", see: observed.request, has: "TEAPOTMARK",
			set: claude(func(o *stromboli.ClaudeOptions) { o.SystemPrompt = "TEAPOTMARK" }),
		},
		{
			field: "claude.append_system_prompt", value: "a text", where: request, shows: "`system`", base: "plain", see: observed.request, has: "STOUTMARK",
			set: claude(func(o *stromboli.ClaudeOptions) { o.AppendSystemPrompt = "STOUTMARK" }),
		},
		{
			field: "claude.tools", value: "`[\"Bash\",\"Read\"]`", where: initEvent, shows: "`tools`: these alone", base: "plain", see: init("tools"), has: `["Bash","Read"]`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.Tools = []string{"Bash", "Read"} }),
		},
		{
			field: "claude.tools", value: "`[\"\"]`", where: initEvent, shows: "`tools`: none", base: "plain", see: init("tools"), has: `[]`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.Tools = []string{""} }),
		},
		{
			field: "claude.allowed_tools", value: "`[\"Bash(touch:*)\",\"Bash(ls:*)\"]`", where: sandbox, shows: "the tool is let, not denied", base: "unasked", see: observed.tool, has: "failed=false",
			set: claude(func(o *stromboli.ClaudeOptions) { o.AllowedTools = []string{"Bash(touch:*)", "Bash(ls:*)"} }),
		},
		{
			field: "claude.disallowed_tools", value: "`[\"Bash(touch:*)\"]`", where: sandbox, shows: "the tool is denied, not let", base: "asked", see: observed.tool, has: "failed=true",
			set: claude(func(o *stromboli.ClaudeOptions) { o.DisallowedTools = []string{"Bash(touch:*)"} }),
		},
		{
			field: "claude.permission_mode", value: "`acceptEdits`", where: sandbox, shows: "a file is written, not denied", base: "write", see: observed.tool, has: "failed=false",
			set: claude(func(o *stromboli.ClaudeOptions) { o.PermissionMode = "acceptEdits" }),
		},
		{
			field: "claude.dangerously_skip_permissions", value: "`true`", where: sandbox, shows: "the tool is let, not denied", base: "unasked", see: observed.tool, has: "failed=false",
			set: claude(func(o *stromboli.ClaudeOptions) { o.DangerouslySkipPermissions = true }),
		},
		{
			field: "claude.allow_dangerously_skip_permissions", value: "`true`", where: result, shows: "the warning `option_unused`: a run's mode doesn't change", base: "unasked",
			see: observed.warnings, has: "option_unused", set: claude(func(o *stromboli.ClaudeOptions) { o.AllowDangerouslySkipPermissions = true }),
		},
		{
			field: "claude.input_format", value: "`stream-json`", where: request, shows: "the content of the message that is the prompt", base: "message", see: observed.request,
			lacks: `\"role\":\"user\"`, set: claude(func(o *stromboli.ClaudeOptions) { o.InputFormat = stromboli.InputStreamJSON }),
		},
		{
			field: "claude.output_format", value: "`json`", where: result, shows: "`output` is the CLI's result object", base: "plain", see: output, has: `"type":"result"`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.OutputFormat = stromboli.OutputJSON }),
		},
		{
			field: "claude.include_partial_messages", value: "`true`", where: events, shows: "`text`", base: "plain", see: count(stromboli.EventText), has: "true",
			set: claude(func(o *stromboli.ClaudeOptions) { o.IncludePartialMessages = true }),
		},
		{
			field: "claude.replay_user_messages", value: "`true`", where: result, shows: "the message among the lines of `output`, `isReplay`", base: "lines", see: output, has: `"isReplay":true`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.ReplayUserMessages = true }),
		},
		{
			field: "claude.json_schema", value: "a schema", where: result, shows: "`structured_output`", base: "schema", see: func(o observed) string { return string(o.StructuredOutput) }, has: `{"n":7}`,
			set: claude(func(o *stromboli.ClaudeOptions) {
				o.JSONSchema = `{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}`
			}),
		},
		{
			field: "claude.max_turns", value: "`1`", where: result, shows: "`failed`, `max_turns`", base: "asked", see: reason, has: "failed max_turns",
			set: claude(func(o *stromboli.ClaudeOptions) { o.MaxTurns = &oneTurn }),
		},
		{
			field: "claude.max_budget_usd", value: "`0.000001`", where: result, shows: "`failed`, `budget`", base: "asked", see: reason, has: "failed budget",
			set: claude(func(o *stromboli.ClaudeOptions) { o.MaxBudgetUSD = &budget }),
		},
		{
			field: "claude.timeout", value: "`2s`", where: result, shows: "`failed`, `timeout`", base: "late", see: reason, has: "failed timeout",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Timeout = seconds }),
		},
		{
			field: "claude.effort", value: "`low`", where: request, shows: "`output_config.effort`", base: "plain", see: observed.request, has: `"effort":"low"`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.Effort = "low" }),
		},
		{
			field: "claude.agent", value: "`reviewer`", where: request, shows: "`system` is the agent's prompt", base: "agents", see: observed.request, has: "REVIEWERMARK",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Agent = "reviewer" }),
		},
		{
			field: "claude.agents", value: "an agent", where: initEvent, shows: "`agents`", base: "plain", see: init("agents"), has: `"reviewer"`,
			set: claude(func(o *stromboli.ClaudeOptions) {
				o.Agents = json.RawMessage(`{"reviewer":{"description":"reviews","prompt":"You review."}}`)
			}),
		},
		{
			field: "claude.add_dirs", value: "`[\"/usr/share\"]`", where: request, shows: "additional working directories", base: "plain", see: observed.request, has: `- /usr/share\n`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.AddDirs = []string{"/usr/share"} }),
		},
		{
			field: "claude.files", value: "a file", where: sandbox, shows: "a tool reads it", base: "shell", see: observed.tool, has: "FILEMARK",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Files = []string{file("evidence.txt", "FILEMARK")} }),
		},
		{
			field: "claude.mcp_configs", value: "JSON", where: initEvent, shows: "the server's tools among `tools`", base: "mcp", see: init("tools"), has: "mcp__evidence__ping",
			set: claude(func(o *stromboli.ClaudeOptions) { o.MCPConfigs = []string{mcpConfig} }),
		},
		{
			field: "claude.mcp_configs", value: "a path", where: initEvent, shows: "the server's tools among `tools`", base: "mcp", see: init("tools"), has: "mcp__evidence__ping",
			set: claude(func(o *stromboli.ClaudeOptions) { o.MCPConfigs = []string{"/workspace/mcp.json"} }),
		},
		{
			field: "claude.strict_mcp_config", value: "`true`", where: initEvent, shows: "the workspace's server is not among `mcp_servers`", base: "project mcp", see: init("mcp_servers"), lacks: "evidence",
			set: claude(func(o *stromboli.ClaudeOptions) { o.StrictMCPConfig = true }),
		},
		{
			field: "claude.plugin_dirs", value: "a path", where: initEvent, shows: "`plugins`", base: "plugin", see: init("plugins"), has: "evidenceplug",
			set: claude(func(o *stromboli.ClaudeOptions) { o.PluginDirs = []string{"/workspace/plug"} }),
		},
		{
			field: "claude.settings", value: "JSON that denies a tool", where: initEvent, shows: "the tool is not among `tools`", base: "plain", see: init("tools"), lacks: "WebFetch",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Settings = `{"permissions":{"deny":["WebFetch"]}}` }),
		},
		{
			field: "claude.settings", value: "a path of the same", where: initEvent, shows: "the tool is not among `tools`", base: "settings file", see: init("tools"), lacks: "WebFetch",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Settings = "deny.json" }),
		},
		{
			field: "claude.setting_sources", value: "`[\"\"]`", where: initEvent, shows: "a tool that the workspace's settings deny is among `tools`", base: "project settings", see: init("tools"), has: "WebFetch",
			set: claude(func(o *stromboli.ClaudeOptions) { o.SettingSources = []string{""} }),
		},
		{
			field: "claude.betas", value: "`[\"context-1m-2025-08-07\"]`", where: request, shows: "the header `anthropic-beta`", base: "plain",
			see: func(o observed) string { return strings.Join(o.header, ",") }, has: "context-1m-2025-08-07",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Betas = []string{"context-1m-2025-08-07"} }),
		},
		{
			field: "claude.disable_slash_commands", value: "`true`", where: initEvent, shows: "`slash_commands` is empty", base: "plain", see: init("slash_commands"), has: "[]",
			set: claude(func(o *stromboli.ClaudeOptions) { o.DisableSlashCommands = true }),
		},
		{
			field: "claude.debug", value: "`init`", where: events, shows: "debug lines of `stderr`", base: "plain", see: observed.stderr, has: "[DEBUG] [init]",
			set: claude(func(o *stromboli.ClaudeOptions) { o.Debug = "init" }),
		},
		{
			field: "claude.verbose", value: "`true`", where: result, shows: "`output` in the format json is a list of all lines", base: "json", see: output, has: `[{"type":"`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.Verbose = true }),
		},
		{
			field: "claude.prompt_caching_ttl", value: "`1h`", where: request, shows: "`cache_control.ttl`", base: "plain", see: observed.request, has: `"ttl":"1h"`,
			set: claude(func(o *stromboli.ClaudeOptions) { o.PromptCachingTTL = "1h" }),
		},
		{
			field: "claude.bedrock_service_tier", value: "`flex`", where: "answer", shows: "400 `not_supported`", refused: "not_supported",
			set: claude(func(o *stromboli.ClaudeOptions) { o.BedrockServiceTier = "flex" }),
		},
		{
			field: "claude.enable_powershell_tool", value: "`true`", where: initEvent, shows: "`tools`", base: "plain", see: init("tools"), has: "PowerShell",
			set: claude(func(o *stromboli.ClaudeOptions) { o.EnablePowershellTool = true }),
		},

		{field: "bindings", value: "a list", where: sandbox, shows: "`git`, `npm`, `pip` and `curl` get what the hosts give for the secret alone", by: "TestBindings"},
		{field: "bindings[].host", value: "`git.example`", where: sandbox, shows: "another host is shown nothing", by: "TestBindings"},
		{field: "bindings[].secret", value: "a secret's name", where: sandbox, shows: "the host's answer", by: "TestBindings"},
		{field: "bindings[].scheme", value: "`basic`, `bearer`, `header`", where: sandbox, shows: "the host's answer", by: "TestBindings"},
		{field: "bindings[].username", value: "`reader`", where: sandbox, shows: "the host's answer", by: "TestBindings"},
		{field: "bindings[].header", value: "`X-Api-Key`", where: sandbox, shows: "the host's answer", by: "TestBindings"},
		{field: "podman.secrets_env", value: "`{\"TOKEN\":\"token\"}`", where: sandbox, shows: "a tool's environment, by the value's hash", by: "TestSecrets"},
		{field: "podman.image", value: "another image", where: sandbox, shows: "a directory that the agent image lacks", by: "TestEvidence/podman.image"},
		{field: "podman.volumes", value: "`…:/mnt/v:ro`, `…:/mnt/v:rw`", where: sandbox, shows: "a file of the host; written only with `rw`", by: "TestEvidence/podman.volumes"},
		{field: "podman.memory", value: "`700m`", where: inspect, shows: "the container's memory limit", by: "TestEvidence/in_the_container"},
		{field: "podman.cpus", value: "`0.7`", where: inspect, shows: "the container's CPU quota", by: "TestEvidence/in_the_container"},
		{field: "podman.cpu_shares", value: "`512`", where: inspect, shows: "the container's CPU shares", by: "TestEvidence/in_the_container"},
		{field: "podman.lifecycle.on_create_command", value: "`[\"id -u\"]`", where: events, shows: "`hook.output`; in every new sandbox of the session's", by: "TestHooksSurviveTheServer"},
		{field: "podman.lifecycle.post_create", value: "`[\"pwd\"]`", where: events, shows: "`hook.output`, after `on_create_command`", by: "TestLifecycleHooks"},
		{field: "podman.lifecycle.post_start", value: "a web server in the background", where: sandbox, shows: "a tool reaches it", by: "TestLifecycleHooks"},
		{field: "podman.lifecycle.hooks_timeout", value: "`1s`", where: result, shows: "`failed`, `hook`, for a hook that never ends", by: "TestLifecycleHooks"},
		{
			field: "podman.timeout", value: "`6s`", where: result, shows: "`failed`, `timeout`", base: "late", see: reason, has: "failed timeout",
			set: func(in *stromboli.RunSpec) { in.Podman.Timeout = stromboli.Duration(6 * time.Second) },
		},
	}
}
