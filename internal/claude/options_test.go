package claude

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

const (
	uuid  = "0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
	other = "1b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
)

func TestSessionName(t *testing.T) {
	for in, want := range map[string][2]string{
		uuid: {uuid, ""}, strings.ToUpper(uuid): {uuid, ""}, "nightly": {"", "nightly"}, "Nightly": {"", "Nightly"},
		"-x.y_Z-9": {"", "-x.y_Z-9"}, uuid[:35]: {"", uuid[:35]}, strings.Repeat("a", 64): {"", strings.Repeat("a", 64)},
		"": {}, ".": {}, "..": {}, "...": {"", "..."}, "a/b": {}, "a\n": {}, "a\x00": {}, "ä": {}, strings.Repeat("a", 65): {},
	} {
		if id, alias := SessionName(in); id != want[0] || alias != want[1] {
			t.Errorf("%q is %q, %q; want %v", in, id, alias, want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestArgs(t *testing.T) {
	base := []string{"-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose"}
	for _, c := range []struct {
		name string
		o    stromboli.ClaudeOptions
		s    Session
		want []string
	}{
		{"new session", stromboli.ClaudeOptions{}, Session{ID: uuid}, []string{"--session-id=" + uuid}},
		{"resume", stromboli.ClaudeOptions{}, Session{ID: uuid, Resume: true}, []string{"--resume=" + uuid}},
		{"fork", stromboli.ClaudeOptions{}, Session{ID: uuid, ForkOf: other}, []string{"--resume=" + other, "--fork-session", "--session-id=" + uuid}},
		{"no persistence", stromboli.ClaudeOptions{NoPersistence: true}, Session{ID: uuid}, []string{"--session-id=" + uuid, "--no-session-persistence"}},
		{"continue ignores the id", stromboli.ClaudeOptions{Continue: true, SessionID: "/"}, Session{ID: uuid, Resume: true}, []string{"--resume=" + uuid}},
		{"the output's format is ours", stromboli.ClaudeOptions{OutputFormat: stromboli.OutputJSON}, Session{ID: uuid}, []string{"--session-id=" + uuid}},
		{"all", stromboli.ClaudeOptions{
			Model: "opus", SystemPrompt: "be\nbrief", AppendSystemPrompt: "more", AllowedTools: []string{"Bash(git log:*)", "Read"},
			DisallowedTools: []string{"Bash(rm:*)"}, PermissionMode: "dontAsk", DangerouslySkipPermissions: true, IncludePartialMessages: true,
			JSONSchema: `{"type":"object"}`, MaxTurns: ptr(0), MaxBudgetUSD: ptr(0.000001),
		}, Session{ID: uuid}, []string{
			"--session-id=" + uuid, "--model=opus", "--system-prompt=be\nbrief", "--append-system-prompt=more", "--allowedTools=Bash(git log:*)",
			"--allowedTools=Read", "--disallowedTools=Bash(rm:*)", "--permission-mode=dontAsk", "--dangerously-skip-permissions",
			"--include-partial-messages", `--json-schema={"type":"object"}`, "--max-turns=0", "--max-budget-usd=0.000001",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Validate(c.o); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(slices.Concat(base, c.want), Args(c.o, c.s)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestValidateRefuses(t *testing.T) {
	type o = stromboli.ClaudeOptions
	for _, c := range []struct {
		field string
		o     o
	}{
		{"claude.session_id", o{Resume: true}},
		{"claude.session_id", o{SessionID: "a b"}},
		{"claude.session_id", o{SessionID: "é"}},
		{"claude.session_id", o{SessionID: ".."}},
		{"claude.session_id", o{SessionID: strings.Repeat("a", 65)}},
		{"claude.fork_session", o{ForkSession: true}},
		{"claude.fork_session", o{SessionID: uuid, ForkSession: true}},
		{"claude.session_id", o{SessionID: "../../../../../../../../etc/passwd00"}},
		{"claude.session_id", o{SessionID: uuid[:35] + "\n"}},
		{"claude.model", o{Model: "-x"}},
		{"claude.model", o{Model: "a b"}},
		{"claude.model", o{Model: "a\x00"}},
		{"claude.model", o{Model: strings.Repeat("m", 300)}},
		{"claude.system_prompt", o{SystemPrompt: "--help"}},
		{"claude.system_prompt", o{SystemPrompt: "a\x00b"}},
		{"claude.append_system_prompt", o{AppendSystemPrompt: "-x"}},
		{"claude.append_system_prompt", o{AppendSystemPrompt: strings.Repeat("x", 200_000)}},
		{"claude.allowed_tools[1]", o{AllowedTools: []string{"Read", "--dangerously-skip-permissions"}}},
		{"claude.allowed_tools[0]", o{AllowedTools: []string{" "}}},
		{"claude.allowed_tools[0]", o{AllowedTools: []string{"Bash(\n)"}}},
		{"claude.allowed_tools", o{AllowedTools: slices.Repeat([]string{"Read"}, 201)}},
		{"claude.disallowed_tools[0]", o{DisallowedTools: []string{"-x"}}},
		{"claude.permission_mode", o{PermissionMode: "yolo"}},
		{"claude.permission_mode", o{PermissionMode: "delegate"}},
		{"claude.output_format", o{OutputFormat: "xml"}},
		{"claude.json_schema", o{JSONSchema: "{"}},
		{"claude.json_schema", o{JSONSchema: "[]"}},
		{"claude.json_schema", o{JSONSchema: "null"}},
		{"claude.json_schema", o{JSONSchema: "-1"}},
		{"claude.max_turns", o{MaxTurns: ptr(-1)}},
		{"claude.max_turns", o{MaxTurns: ptr(math.MaxInt)}},
		{"claude.max_budget_usd", o{MaxBudgetUSD: ptr(0.0)}},
		{"claude.max_budget_usd", o{MaxBudgetUSD: ptr(-1.0)}},
		{"claude.max_budget_usd", o{MaxBudgetUSD: ptr(math.Inf(1))}},
		{"claude.max_budget_usd", o{MaxBudgetUSD: ptr(math.NaN())}},
	} {
		err := Validate(c.o)
		e, ok := errors.AsType[*stromboli.Error](err)
		if !ok {
			t.Errorf("%s: %+v: got %v", c.field, c.o, err)
			continue
		}
		if len(e.Details) != 1 || e.Details[0].Field != c.field || !strings.HasPrefix(e.Message, c.field+": ") || strings.ContainsAny(e.Message, "\n\x00") || len(e.Message) > 400 {
			t.Errorf("%s: got %q %v", c.field, e.Message, e.Details)
		}
	}
	if err := Validate(o{PermissionMode: "delegate"}); !errors.Is(err, stromboli.NotSupported) {
		t.Errorf("delegate: %v", err)
	}
}

func TestEnv(t *testing.T) {
	get := func(env []string, name string) string {
		found := "unset"
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				if found != "unset" {
					t.Errorf("%s is there twice", name)
				}
				found = v
			}
		}
		return found
	}
	env := Env(EnvConfig{
		Image: []string{"PATH=/opt/bin:/bin", "HOME=/root", "TERM=xterm", "ANTHROPIC_BASE_URL=http://evil", "anthropic_api_key=x", "NODE_OPTIONS=--require=/x", "LANG=de", "JAVA_HOME=/j", "broken", "=x"},
		Home:  "/home/agent", Timezone: "Europe/Paris", Endpoint: "http://127.0.0.1:3128", CredentialKind: OAuth, MaxRetries: -1,
	})
	for name, want := range map[string]string{
		"PATH": "/opt/bin:/bin", "HOME": "/home/agent", "USER": "agent", "LANG": "C.UTF-8", "TZ": "Europe/Paris", "TERM": "unset", "JAVA_HOME": "/j",
		"ANTHROPIC_BASE_URL": "http://127.0.0.1:3128", "anthropic_api_key": "unset", "NODE_OPTIONS": "unset", "CLAUDE_CODE_TMPDIR": "unset",
		"HTTP_PROXY": "http://127.0.0.1:3128", "https_proxy": "http://127.0.0.1:3128", "no_proxy": "localhost,127.0.0.1,::1", "NODE_USE_ENV_PROXY": "1",
		"CLAUDE_CODE_OAUTH_TOKEN": Placeholder, "ANTHROPIC_API_KEY": "unset", "ANTHROPIC_AUTH_TOKEN": "unset", "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST": "1",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_MAX_RETRIES": "unset",
	} {
		if got := get(env, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	env = Env(EnvConfig{Home: "/h", CredentialKind: AuthToken, MaxRetries: 0, TempDir: "/t"})
	for name, want := range map[string]string{"PATH": DefaultPath, "ANTHROPIC_AUTH_TOKEN": Placeholder, "CLAUDE_CODE_MAX_RETRIES": "0", "CLAUDE_CODE_TMPDIR": "/t", "TZ": "unset"} {
		if got := get(env, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := get(Env(EnvConfig{}), "ANTHROPIC_API_KEY"); got != Placeholder {
		t.Errorf("default kind: %q", got)
	}
}

func TestMessages(t *testing.T) {
	for _, prompt := range []string{"hello", "two\nlines", "<a> & \"b\" \\ \u2028 é 😀", strings.Repeat("x", 1<<20)} {
		b := UserMessage(uuid, stromboli.RunSpec{Prompt: prompt})
		if n := strings.Count(string(b), "\n"); n != 1 || b[len(b)-1] != '\n' {
			t.Fatalf("%d newlines", n)
		}
		var m userMessage
		if err := json.Unmarshal(b, &m); err != nil || m.Message.Content != prompt || m.UUID != uuid || m.Type != "user" || m.Message.Role != "user" {
			t.Errorf("%.60s: %v", b, err)
		}
	}
	if got, want := string(Interrupt("c1")), `{"type":"control_request","request_id":"c1","request":{"subtype":"interrupt"}}`+"\n"; got != want {
		t.Errorf("got %s", got)
	}
	if got, want := string(StopTask("c2", "t")), `{"type":"control_request","request_id":"c2","request":{"subtype":"stop_task","task_id":"t"}}`+"\n"; got != want {
		t.Errorf("got %s", got)
	}
}
