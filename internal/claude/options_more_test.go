package claude

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func TestMoreArgs(t *testing.T) {
	o := stromboli.ClaudeOptions{
		FallbackModel: "haiku,sonnet", Tools: []string{"Bash", "Read"}, AllowDangerouslySkipPermissions: true, ReplayUserMessages: true, Effort: "low",
		Agents: json.RawMessage(`{"a":{"description":"d","prompt":"p","tools":["Read"]}}`), Agent: "a", AddDirs: []string{"/x", "y/z"},
		MCPConfigs: []string{"/m.json", `{"mcpServers":{"s":{"command":"c"},"h":{"type":"http","url":"http://x","headers":{"a":"b"}}}}`}, StrictMCPConfig: true,
		PluginDirs: []string{"/p"}, Settings: `{"permissions":{"deny":["Bash"]},"env":{"A":"b"},"future":1}`, SettingSources: []string{"user", "local"},
		Betas: []string{"context-1m-2025-08-07"}, DisableSlashCommands: true, Debug: "init,!api", PromptCachingTTL: "1h", EnablePowershellTool: true,
		Files: []string{`{"path":"a","content":"x"}`}, InputFormat: "stream-json", Verbose: true,
	}
	if err := Validate(o); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"--fallback-model=haiku,sonnet", "--tools=Bash,Read", "--allow-dangerously-skip-permissions", "--replay-user-messages", "--effort=low",
		"--agents=" + string(o.Agents), "--agent=a", "--add-dir=/x", "--add-dir=y/z", "--mcp-config=/m.json", "--mcp-config=" + o.MCPConfigs[1],
		"--strict-mcp-config", "--plugin-dir=/p", "--settings=" + o.Settings, "--setting-sources=user,local", "--betas=context-1m-2025-08-07",
		"--disable-slash-commands", "--debug=init,!api", "--debug-to-stderr",
	}
	if d := cmp.Diff(want, Args(o, Session{ID: uuid})[5:]); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	none := stromboli.ClaudeOptions{Tools: []string{""}, SettingSources: []string{""}}
	if d := cmp.Diff([]string{"--tools=", "--setting-sources="}, Args(none, Session{})[5:]); d != "" || Validate(none) != nil {
		t.Errorf("none: %v %s", Validate(none), d)
	}
}

// refused checks that an error names the field in one short line.
func refused(t *testing.T, err error, field string, code stromboli.Code) {
	t.Helper()
	e, ok := errors.AsType[*stromboli.Error](err)
	if !ok {
		t.Errorf("%s: got %v", field, err)
		return
	}
	if e.Code != code || len(e.Details) != 1 || e.Details[0].Field != field || strings.ContainsAny(e.Message, "\n\x00") || len(e.Message) > 600 {
		t.Errorf("%s: got %s %q %v", field, e.Code, e.Message, e.Details)
	}
}

func TestValidateRefusesMore(t *testing.T) {
	type o = stromboli.ClaudeOptions
	agents := func(s string) o { return o{Agents: json.RawMessage(s)} }
	mcp := func(s string) o { return o{MCPConfigs: []string{s}} }
	for _, c := range []struct {
		field string
		o     o
	}{
		{"claude.fallback_model", o{FallbackModel: "-x"}},
		{"claude.fallback_model", o{FallbackModel: "a,,b"}},
		{"claude.fallback_model", o{FallbackModel: "a b"}},
		{"claude.tools[1]", o{Tools: []string{"Bash", ""}}},
		{"claude.tools[0]", o{Tools: []string{"default", "Bash"}}},
		{"claude.tools[0]", o{Tools: []string{"Bash(git:*)"}}},
		{"claude.tools[0]", o{Tools: []string{"-x"}}},
		{"claude.tools", o{Tools: slices.Repeat([]string{"A"}, 201)}},
		{"claude.input_format", o{InputFormat: "xml"}},
		{"claude.effort", o{Effort: "huge"}},
		{"claude.prompt_caching_ttl", o{PromptCachingTTL: "2h"}},
		{"claude.setting_sources[0]", o{SettingSources: []string{"managed"}}},
		{"claude.setting_sources[1]", o{SettingSources: []string{"user", ""}}},
		{"claude.setting_sources[1]", o{SettingSources: []string{"user", "user"}}},
		{"claude.betas[0]", o{Betas: []string{"files-api-2025-04-14"}}},
		{"claude.betas[0]", o{Betas: []string{""}}},
		{"claude.debug", o{Debug: "--x"}},
		{"claude.debug", o{Debug: "*"}},
		{"claude.debug", o{Debug: "a,"}},
		{"claude.bedrock_service_tier", o{BedrockServiceTier: "cheap"}},
		{"claude.agent", o{Agent: "-x"}},
		{"claude.agent", o{Agent: "a\nb"}},
		{"claude.agents", agents(`[]`)},
		{"claude.agents.a", agents(`{"a":1}`)},
		{"claude.agents.a.prompt", agents(`{"a":{"description":"d"}}`)},
		{"claude.agents.a.description", agents(`{"a":{"description":" ","prompt":"p"}}`)},
		{"claude.agents.a.tools", agents(`{"a":{"description":"d","prompt":"p","tools":"Bash"}}`)},
		{"claude.agents.-a", agents(`{"-a":{"description":"d","prompt":"p"}}`)},
		{`claude.agents."a\nb"`, agents(`{"a\nb":{"description":"d","prompt":"p"}}`)},
		{"claude.agents", agents(`{"a":{"description":"d","prompt":"` + strings.Repeat("x", 200_000) + `"}}`)},
		{"claude.add_dirs[0]", o{AddDirs: []string{""}}},
		{"claude.add_dirs[1]", o{AddDirs: []string{"/a", "-b"}}},
		{"claude.add_dirs[0]", o{AddDirs: []string{"/a/../b"}}},
		{"claude.plugin_dirs[0]", o{PluginDirs: []string{"a\x00"}}},
		{"claude.files[0].path", o{Files: []string{`{"content":"x"}`}}},
		{"claude.files[0]", o{Files: []string{`{"path":"/x","mode":"0777"}`}}},
		{"claude.files[0].encoding", o{Files: []string{`{"path":"/x","encoding":"hex"}`}}},
		{"claude.files[0].content", o{Files: []string{`{"path":"/x","encoding":"base64","content":"!"}`}}},
		{"claude.mcp_configs[0]", mcp(`{"mcpServers":`)},
		{"claude.mcp_configs[0]", mcp(`{"servers":{}}`)},
		{"claude.mcp_configs[0].mcpServers", mcp(`{"mcpServers":[]}`)},
		{"claude.mcp_configs[0].mcpServers.s", mcp(`{"mcpServers":{"s":{}}}`)},
		{"claude.mcp_configs[0].mcpServers.s.command", mcp(`{"mcpServers":{"s":{"command":5}}}`)},
		{"claude.mcp_configs[0].mcpServers.s.env.A", mcp(`{"mcpServers":{"s":{"command":"c","env":{"A":1}}}}`)},
		{"claude.mcp_configs[0]", mcp("-x")},
		{"claude.settings", o{Settings: `{"a":`}},
		{"claude.settings", o{Settings: "../x"}},
		{"claude.settings.permissions.allow", o{Settings: `{"permissions":{"allow":7}}`}},
		{"claude.settings.permissions", o{Settings: `{"permissions":7}`}},
		{"claude.settings.env.A", o{Settings: `{"env":{"A":5}}`}},
		{"claude.settings.env.ANTHROPIC_BASE_URL", o{Settings: `{"env":{"ANTHROPIC_BASE_URL":"http://evil"}}`}},
		{"claude.settings.env.CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", o{Settings: `{"env":{"CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST":""}}`}},
		{"claude.settings.apiKeyHelper", o{Settings: `{"apiKeyHelper":"echo x"}`}},
		{"claude", o{
			AllowedTools: slices.Repeat([]string{strings.Repeat("x", 1000)}, 200), DisallowedTools: slices.Repeat([]string{strings.Repeat("x", 1000)}, 200),
			MCPConfigs: slices.Repeat([]string{`{"mcpServers":{"s":{"command":"` + strings.Repeat("x", 100_000) + `"}}}`}, 7),
		}},
	} {
		refused(t, Validate(c.o), c.field, stromboli.Invalid)
	}
	refused(t, Validate(o{BedrockServiceTier: "flex"}), "claude.bedrock_service_tier", stromboli.NotSupported)
	refused(t, Validate(o{Files: []string{"file_abc:/x"}}), "claude.files[0]", stromboli.NotSupported)
}

func TestValidateEnv(t *testing.T) {
	ok := map[string]string{"FOO": "bar", "_x1": "", "TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "PATHS": "x", "MCP_TIMEOUT": "5", "AWS_REGION": "x"}
	if err := ValidateEnv("env", ok); err != nil {
		t.Error(err)
	}
	got := strings.Join(Env(EnvConfig{Image: []string{"FOO=image"}, Home: "/h", Timezone: "Europe/Paris", Caller: ok}), "\n")
	for _, want := range []string{"FOO=bar", "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "_x1="} {
		if strings.Count("\n"+got+"\n", "\n"+want+"\n") != 1 {
			t.Errorf("%s is not there once:\n%s", want, got)
		}
	}
	many := map[string]string{}
	for i := range 101 {
		many["A"+strings.Repeat("x", i)] = ""
	}
	for name, field := range map[string]string{
		"": "env", "1A": "env", "A-B": "env", "A=B": "env", "Ä": "env", "A\x00": "env", strings.Repeat("A", 300): "env",
		"PATH": "", "path": "", "LD_PRELOAD": "", "LD_LIBRARY_PATH": "", "ANTHROPIC_API_KEY": "", "CLAUDE_CODE_USE_BEDROCK": "", "https_proxy": "",
		"NODE_OPTIONS": "", "HOME": "", "BASH_ENV": "", "STROMBOLI_X": "", "CLAUDECODE": "", "ENABLE_PROMPT_CACHING_1H": "", "NODE_EXTRA_CA_CERTS": "",
	} {
		if field == "" {
			field = "env." + name
		}
		refused(t, ValidateEnv("env", map[string]string{name: "x"}), field, stromboli.Invalid)
		for _, kv := range Env(EnvConfig{Caller: map[string]string{name: "mine"}}) {
			if strings.HasSuffix(kv, "=mine") {
				t.Errorf("%s got through", kv)
			}
		}
	}
	refused(t, ValidateEnv("env", many), "env", stromboli.Invalid)
	refused(t, ValidateEnv("env", map[string]string{"A": "a\x00b"}), "env.A", stromboli.Invalid)
	refused(t, ValidateEnv("env", map[string]string{"A": strings.Repeat("x", 65<<10)}), "env", stromboli.Invalid)
}

func TestContent(t *testing.T) {
	type block = stromboli.ContentBlock
	png := base64.StdEncoding.EncodeToString([]byte("\x89PNG\r\n\x1a\nrest"))
	image := block{Type: "image", Source: &stromboli.ContentSource{Type: "base64", MediaType: "image/png", Data: png}}
	document := block{Type: "document", Title: "t", Source: &stromboli.ContentSource{Type: "text", MediaType: "text/plain", Data: "d"}}
	message := func(in stromboli.RunSpec) string {
		if err := ValidateInput(in); err != nil {
			t.Fatal(err)
		}
		var m struct {
			Message struct {
				Content json.RawMessage `json:"content"`
			} `json:"message"`
		}
		if err := json.Unmarshal(UserMessage(uuid, in), &m); err != nil {
			t.Fatal(err)
		}
		return string(m.Message.Content)
	}
	for want, in := range map[string]stromboli.RunSpec{
		`"p"`: {Prompt: "p"},
		`[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + png + `"}},{"type":"document","source":{"type":"text","media_type":"text/plain","data":"d"},"title":"t"},{"type":"text","text":"p"}]`: {Prompt: "p", Content: []block{image, document}},
		`[{"type":"text","text":"q"}]`: {
			Prompt: `{"type":"user","message":{"role":"user","content":"q"}}`, Claude: stromboli.ClaudeOptions{InputFormat: "stream-json"},
		},
		`[{"type":"text","text":"a"},{"type":"text","text":"q"}]`: {
			Prompt:  `{"type":"user","message":{"role":"user","content":[{"type":"text","text":"q"}]},"session_id":"x"}`,
			Content: []block{{Type: "text", Text: "a"}}, Claude: stromboli.ClaudeOptions{InputFormat: "stream-json"},
		},
	} {
		if got := message(in); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	source := func(b block, typ, media, data string) []block {
		b.Source = &stromboli.ContentSource{Type: typ, MediaType: media, Data: data}
		return []block{b}
	}
	for _, c := range []struct {
		field  string
		blocks []block
	}{
		{"content[0].type", []block{{}}},
		{"content[0].type", []block{{Type: "tool_result"}}},
		{"content[1].text", []block{image, {Type: "text"}}},
		{"content[0]", []block{{Type: "text", Text: "x", Title: "t"}}},
		{"content[0].text", []block{{Type: "image", Text: "x"}}},
		{"content[0].source", []block{{Type: "image"}}},
		{"content[0]", []block{{Type: "image", Title: "x", Source: image.Source}}},
		{"content[0].source.type", source(image, "url", "image/png", "http://x/")},
		{"content[0].source.type", source(image, "text", "text/plain", "x")},
		{"content[0].source.type", source(document, "file", "", "x")},
		{"content[0].source.media_type", source(image, "base64", "image/tiff", png)},
		{"content[0].source.media_type", source(document, "base64", "image/png", png)},
		{"content[0].source.media_type", source(document, "text", "text/html", "x")},
		{"content[0].source.data", source(document, "text", "text/plain", " ")},
		{"content[0].source.data", source(image, "base64", "image/png", "")},
		{"content[0].source.data", source(image, "base64", "image/png", "???")},
		{"content[0].source.data", source(image, "base64", "image/jpeg", png)},
		{"content", slices.Repeat([]block{image}, 101)},
	} {
		refused(t, ValidateInput(stromboli.RunSpec{Prompt: "p", Content: c.blocks}), c.field, stromboli.Invalid)
	}
	for _, prompt := range []string{
		"hello", `{}`, `{"type":"control_request"}`, `{"type":"user","message":{"role":"assistant","content":"x"}}`,
		`{"type":"user","message":{"role":"user","content":""}}`, `{"type":"user","message":{"role":"user","content":[{"type":"text","text":"x","y":1}]}}`,
		`{"type":"user","message":{"role":"user","content":"x"}} {}`, `{"type":"user","message":{"role":"user","content":[]}}`,
	} {
		refused(t, ValidateInput(stromboli.RunSpec{Prompt: prompt, Claude: stromboli.ClaudeOptions{InputFormat: "stream-json"}}), "prompt", stromboli.Invalid)
	}
}

func TestWhatTheCLIPassesOver(t *testing.T) {
	turn := NewTurn(stromboli.ClaudeOptions{Tools: []string{"Bash", "Agent", "Bogus"}, Agent: "nobody", PluginDirs: []string{"plug", "/gone"}})
	init := `{"type":"system","subtype":"init","cwd":"/w","tools":["Bash","Task"],"agents":["claude"],"plugins":[{"path":"/w/plug"}],` +
		`"mcp_servers":[{"name":"a","status":"failed"},{"name":"b","status":"connected"}]}`
	var warnings []string
	for range 2 {
		for _, e := range turn.Feed(Stdout, []byte(init)) {
			if e.Type == stromboli.EventWarning {
				warnings = append(warnings, string(e.Data))
			}
		}
	}
	want := []string{
		`{"code":"option_unused","message":"the agent CLI doesn't know, or doesn't offer now: the tool \"Bogus\", the agent \"nobody\", the plugin in \"/gone\""}`,
		`{"code":"mcp_failed","message":"MCP servers that did not start: \"a\""}`,
	}
	if d := cmp.Diff(want, warnings); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if got := len(turn.Outcome(nil).Warnings); got != 2 {
		t.Errorf("%d warnings in the outcome", got)
	}
}

func TestVerboseJSONIsAList(t *testing.T) {
	turn := NewTurn(stromboli.ClaudeOptions{OutputFormat: "json", Verbose: true})
	for _, l := range []string{`{"type":"system","subtype":"init"}`, "no JSON", `{"type":"control_response"}`, `{"type":"result","subtype":"success","result":"x"}`} {
		turn.Feed(Stdout, []byte(l))
	}
	if got := turn.Outcome(&Exit{}).Output; got != `[{"type":"system","subtype":"init"},{"type":"result","subtype":"success","result":"x"}]` {
		t.Errorf("got %s", got)
	}
}
