package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// badInput is a request that is refused before anything exists.
type badInput struct {
	name   string
	body   string
	status int
	code   string
	field  string // that the details name; empty: none
}

// TestBadInput: each is told what is wrong and where, and starts nothing.
func TestBadInput(t *testing.T) {
	s := start(t)
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf(`"%s/%d:/mnt/%d"`, s.volumes, i, i)
	}
	outside := filepath.Join(s.dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.volumes, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(s.volumes, "passwd")); err != nil {
		t.Fatal(err)
	}
	repo := s.gate(t).path

	invalid := func(name, body, field string) badInput { return badInput{name, body, 400, "invalid_request", field} }
	claude := func(name, option, field string) badInput {
		return invalid("claude, "+name, `{"prompt":"x","claude":{`+option+`}}`, "claude."+field)
	}
	sandbox := func(name, option, field string) badInput {
		return invalid("podman, "+name, `{"prompt":"x","podman":{`+option+`}}`, "podman."+field)
	}
	volume := func(name, volume string) badInput {
		return sandbox("volume "+name, `"volumes":["`+repo+`:/ok","`+volume+`"]`, "volumes[1]")
	}
	later := func(field, value string) badInput {
		b := `{"prompt":"x","` + field + `":` + value + `}`
		if group, name, ok := strings.Cut(field, "."); ok {
			b = `{"prompt":"x","` + group + `":{"` + name + `":` + value + `}}`
		}
		return badInput{"not yet: " + field, b, 400, "not_supported", field}
	}
	all := []badInput{
		invalid("empty body", ``, ""),
		invalid("no JSON", `{"prompt":`, ""),
		invalid("two values", `{"prompt":"x"}{}`, ""),
		invalid("a list", `["x"]`, ""),
		invalid("a string", `"x"`, ""),
		invalid("no UTF-8", "{\"prompt\":\"\xff\"}", ""),
		invalid("too deep", `{"prompt":"x","metadata":`+strings.Repeat(`[`, 10_000)+strings.Repeat(`]`, 10_000)+`}`, ""),
		invalid("unknown field", `{"prompt":"x","promt":"y"}`, "promt"),
		invalid("unknown option", `{"prompt":"x","claude":{"modell":"y"}}`, "claude.modell"),
		invalid("field in another case", `{"prompt":"x","Workdir":"/y"}`, "Workdir"),
		invalid("mistyped prompt", `{"prompt":7}`, "prompt"),
		invalid("mistyped group", `{"prompt":"x","claude":"fast"}`, "claude"),
		invalid("mistyped list", `{"prompt":"x","podman":{"volumes":"a:b"}}`, "podman.volumes"),
		invalid("mistyped element", `{"prompt":"x","claude":{"allowed_tools":["Bash",7]}}`, "claude.allowed_tools[1]"),
		invalid("mistyped truth", `{"prompt":"x","claude":{"resume":"yes"}}`, "claude.resume"),
		invalid("mistyped number", `{"prompt":"x","claude":{"max_turns":1.5}}`, "claude.max_turns"),
		invalid("mistyped metadata", `{"prompt":"x","metadata":{"a":1}}`, "metadata.a"),
		invalid("no prompt", `{}`, "prompt"),
		invalid("blank prompt", `{"prompt":" \n\t "}`, "prompt"),
		invalid("a variable of the CLI", `{"prompt":"x","env":{"ANTHROPIC_BASE_URL":"http://evil/"}}`, "env.ANTHROPIC_BASE_URL"),
		invalid("a variable of the loader", `{"prompt":"x","env":{"LD_PRELOAD":"/x"}}`, "env.LD_PRELOAD"),
		invalid("background_wait", `{"prompt":"x","background_wait":"-1s"}`, "background_wait"),
		invalid("an image that is none", `{"prompt":"x","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}`, "content[0].source.data"),
		invalid("no message", `{"prompt":"x","claude":{"input_format":"stream-json"}}`, "prompt"),
		claude("effort", `"effort":"huge"`, "effort"),
		claude("beta", `"betas":["x"]`, "betas[0]"),
		claude("tool pattern", `"tools":["Bash(rm:*)"]`, "tools[0]"),
		claude("agents", `"agents":{"x":{"prompt":"y"}}`, "agents.x.description"),
		claude("MCP servers", `"mcp_configs":["{}"]`, "mcp_configs[0]"),
		claude("settings that redirect", `"settings":"{\"env\":{\"ANTHROPIC_BASE_URL\":\"http://evil/\"}}"`, "settings.env.ANTHROPIC_BASE_URL"),
		claude("directory", `"add_dirs":["/a/../b"]`, "add_dirs[0]"),
		{"a file of claude.ai", `{"prompt":"x","claude":{"files":["file_abc:/x"]}}`, 400, "not_supported", "claude.files[0]"},
		{"Bedrock", `{"prompt":"x","claude":{"bedrock_service_tier":"flex"}}`, 400, "not_supported", "claude.bedrock_service_tier"},
		invalid("on_disconnect", `{"prompt":"x","on_disconnect":"explode"}`, "on_disconnect"),
		invalid("much metadata", `{"prompt":"x","metadata":{`+strings.TrimSuffix(manyKeys(33), ",")+`}}`, "metadata"),
		invalid("relative workdir", `{"prompt":"x","workdir":"repo"}`, "workdir"),
		invalid("workdir with ..", `{"prompt":"x","workdir":"/repo/../etc"}`, "workdir"),
		invalid("workdir with NUL", `{"prompt":"x","workdir":"/repo\u0000"}`, "workdir"),
		invalid("workdir with newline", `{"prompt":"x","workdir":"/repo\nx"}`, "workdir"),
		invalid("workdir of the sandbox's own", `{"prompt":"x","workdir":"/run/stromboli/x"}`, "workdir"),

		claude("model with a dash", `"model":"--version"`, "model"),
		claude("model with a space", `"model":"a b"`, "model"),
		claude("system_prompt with a dash", `"system_prompt":"-p"`, "system_prompt"),
		claude("append_system_prompt with a dash", `"append_system_prompt":"--mcp-config=/etc/passwd"`, "append_system_prompt"),
		claude("append_system_prompt with NUL", `"append_system_prompt":"a\u0000b"`, "append_system_prompt"),
		claude("system_prompt too long", `"system_prompt":"`+strings.Repeat("x", 200_000)+`"`, "system_prompt"),
		claude("allowed_tools with a dash", `"allowed_tools":["Bash","--resume"]`, "allowed_tools[1]"),
		claude("disallowed_tools with a dash", `"disallowed_tools":["-x"]`, "disallowed_tools[0]"),
		claude("permission_mode", `"permission_mode":"yolo"`, "permission_mode"),
		claude("output_format", `"output_format":"xml"`, "output_format"),
		claude("session id of no form", `"session_id":"../../etc"`, "session_id"),
		claude("session id of two dots", `"session_id":".."`, "session_id"),
		claude("session id that is too long", `"session_id":"`+strings.Repeat("a", 65)+`"`, "session_id"),
		claude("fork of nothing", `"fork_session":true`, "fork_session"),
		claude("resume of nothing", `"resume":true`, "session_id"),
		claude("json_schema no JSON", `"json_schema":"{"`, "json_schema"),
		claude("json_schema no object", `"json_schema":"[]"`, "json_schema"),
		claude("negative max_turns", `"max_turns":-1`, "max_turns"),
		claude("absurd max_turns", `"max_turns":99999999999999999999`, "max_turns"),
		claude("max_budget_usd of nothing", `"max_budget_usd":0`, "max_budget_usd"),
		claude("negative max_budget_usd", `"max_budget_usd":-1.5`, "max_budget_usd"),
		claude("absurd max_budget_usd", `"max_budget_usd":1e300`, "max_budget_usd"),
		claude("negative timeout", `"timeout":"-5s"`, "timeout"),
		claude("timeout of no form", `"timeout":"soon"`, "timeout"),
		claude("timeout without unit", `"timeout":"5"`, "timeout"),
		claude("absurd timeout", `"timeout":"2000000h"`, "timeout"),

		sandbox("negative memory", `"memory":"-512m"`, "memory"),
		sandbox("no memory", `"memory":"0"`, "memory"),
		sandbox("little memory", `"memory":"1m"`, "memory"),
		sandbox("absurd memory", `"memory":"99999999t"`, "memory"),
		sandbox("memory of no form", `"memory":"much"`, "memory"),
		sandbox("negative cpus", `"cpus":"-1"`, "cpus"),
		sandbox("cpus of no number", `"cpus":"NaN"`, "cpus"),
		sandbox("infinite cpus", `"cpus":"Inf"`, "cpus"),
		sandbox("absurd cpus", `"cpus":"1e9"`, "cpus"),
		sandbox("cpu_shares of nothing", `"cpu_shares":0`, "cpu_shares"),
		sandbox("negative cpu_shares", `"cpu_shares":-2`, "cpu_shares"),
		sandbox("absurd cpu_shares", `"cpu_shares":262145`, "cpu_shares"),
		sandbox("negative timeout", `"timeout":"-1h"`, "timeout"),
		sandbox("image with a dash", `"image":"--privileged"`, "image"),
		sandbox("image of no form", `"image":"../x"`, "image"),
		sandbox("10,000 volumes", `"volumes":[`+strings.Join(many, ",")+`]`, "volumes"),
		volume("outside", "/etc:/mnt/x"),
		volume("of the root", "/:/mnt/x"),
		volume("of the server's own files", s.data+":/mnt/x"),
		volume("through a symlink", s.volumes+"/link:/mnt/x"),
		volume("that is a symlink to a file", s.volumes+"/passwd:/mnt/x"),
		volume("with ..", s.volumes+"/../outside:/mnt/x"),
		volume("with a prefix's look", s.volumes+"-not:/mnt/x"),
		volume("that isn't there", s.volumes+"/missing:/mnt/x"),
		volume("relative", "gate:/mnt/x"),
		volume("to a relative target", repo+":x"),
		volume("to a target with ..", repo+":/mnt/../etc"),
		volume("with NUL", repo+`\u0000:/mnt/x`),
		volume("with newline", repo+`:/mnt/x\ny`),
		volume("without target", repo),
		volume("with an unknown option", repo+":/mnt/x:U"),
		volume("with a dangerous option", repo+":/mnt/x:rw,suid,dev"),
		volume("over the sandbox's own", repo+":/run/stromboli"),
		volume("over /proc", repo+":/proc/self"),
		volume("over /", repo+":/"),
		volume("over the home", repo+":/home/agent/.claude"),
		volume("at the same target", repo+":/ok"),
		volume("inside another, where nothing is", repo+":/ok/inside"),
		volume("through a symlink of the image", repo+":/var/run/x"),
		{"image that is missing", `{"prompt":"x","podman":{"image":"localhost/no-such-image:1"}}`, 400, "image_missing", ""},
		{"permission_mode of another version", `{"prompt":"x","claude":{"permission_mode":"delegate"}}`, 400, "not_supported", "claude.permission_mode"},
		{"unknown session", `{"prompt":"x","claude":{"resume":true,"session_id":"0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"}}`, 404, "not_found", ""},
		{"unknown alias", `{"prompt":"x","claude":{"resume":true,"session_id":"never"}}`, 404, "not_found", ""},
		{"fork of an unknown session", `{"prompt":"x","claude":{"resume":true,"fork_session":true,"session_id":"never"}}`, 404, "not_found", ""},
		{"nothing to continue", `{"prompt":"x","workdir":"/never","claude":{"continue":true}}`, 404, "not_found", ""},
		{"too large", `{"prompt":"` + strings.Repeat("x", 10<<20) + `"}`, 413, "body_too_large", ""},

		{"webhook_url of a loopback address", `{"prompt":"x","webhook_url":"http://127.0.0.1:9/?key=hidden"}`, 400, "invalid_request", "webhook_url"},
		{"webhook_url of another scheme", `{"prompt":"x","webhook_url":"file:///etc/passwd"}`, 400, "invalid_request", "webhook_url"},
		{"webhook_url that is none", `{"prompt":"x","webhook_url":"http://[::1"}`, 400, "invalid_request", "webhook_url"},
		{"network of another shape", `{"prompt":"x","network":"open"}`, 400, "invalid_request", "network"},
		{"network wider than it gets", `{"prompt":"x","network":{"mode":"bridge"}}`, 400, "invalid_request", "network.mode"},
		{"bindings of another shape", `{"prompt":"x","bindings":["x"]}`, 400, "invalid_request", "bindings[0]"},
		{"binding of an unknown secret", `{"prompt":"x","bindings":[{"host":"git.example","secret":"never","scheme":"basic"}]}`, 400, "invalid_request", "bindings[0].secret"},
		{"binding of the model's host", `{"prompt":"x","bindings":[{"host":"api.anthropic.com","secret":"never","scheme":"bearer"}]}`, 400, "invalid_request", "bindings[0].host"},
		later("permission_prompts", `"http"`), later("workspace", `{"git":"x"}`), later("keep", `true`),
		{"secret that is missing", `{"prompt":"x","podman":{"secrets_env":{"A":"never"}}}`, 400, "invalid_request", "podman.secrets_env.A"},
		{"secret of the engine's", `{"prompt":"x","podman":{"secrets_env":{"A":"engine:x"}}}`, 400, "invalid_request", "podman.secrets_env.A"},
		{"hook that is blank", `{"prompt":"x","podman":{"lifecycle":{"post_start":["true"," "]}}}`, 400, "invalid_request", "podman.lifecycle.post_start[1]"},
		{"hooks of another shape", `{"prompt":"x","podman":{"lifecycle":["true"]}}`, 400, "invalid_request", "podman.lifecycle"},
		{"hooks_timeout that is too long", `{"prompt":"x","podman":{"lifecycle":{"hooks_timeout":"2h"}}}`, 400, "invalid_request", "podman.lifecycle.hooks_timeout"},
		later("podman.environment", `{"type":"compose"}`),
	}
	for i, c := range all {
		t.Run(c.name, func(t *testing.T) {
			path := []string{"/run", "/run/async", "/run/stream"}[i%3]
			a := s.send(t, "POST", path, c.body, "Content-Type: application/json")
			a.refused(t, c.status, c.code, c.field)
			if o := a.object(t); o["status"] != "error" {
				t.Errorf("status is %v", o["status"])
			}
			if len(a.body) > 4096 {
				t.Errorf("the answer has %d bytes", len(a.body))
			}
		})
	}
	t.Run("requests", func(t *testing.T) { badRequests(t, s) })
	s.idle(t)

	t.Run("a prompt of 1 MB works", func(t *testing.T) {
		in := keyed("large", text("read it all"))
		in.Prompt += "\n" + strings.Repeat("0123456789 abcdefghij\n", 50_000)
		id := s.submit(t, in)
		// As part of an address too.
		stream := sseBlocks(t, s.send(t, "GET", "/run/stream?"+url.Values{"prompt": {in.Prompt}}.Encode(), "").want(t, 200).body)
		if len(stream) != 3 || stream[1].data != "read it all" {
			t.Errorf("the stream is %+v", stream)
		}
		if r := s.await(t, id); r.Output != "read it all" {
			t.Errorf("%s %q, output %q", r.Status, r.Error, r.Output)
		}
		for _, q := range s.stub.Requests("large") {
			if q.Size < 1_000_000 {
				t.Errorf("the model was sent %d bytes", q.Size)
			}
		}
	})
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":"v",`, i)
	}
	return b.String()
}

// badRequests are wrong beside their body.
func badRequests(t *testing.T, s *server) {
	const good = `{"prompt":"x"}`
	s.send(t, "POST", "/run", good, "Content-Type: text/plain").refused(t, 415, "unsupported_media", "")
	s.send(t, "POST", "/run", good, "Content-Type: application/json", "Idempotency-Key: "+strings.Repeat("k", 256)).refused(t, 400, "invalid_request", "Idempotency-Key")
	s.send(t, "POST", "/run/stream", good, "Last-Event-ID: 7").refused(t, 400, "invalid_request", "Last-Event-ID")
	s.send(t, "GET", "/run/stream", "").refused(t, 400, "invalid_request", "prompt")
	s.send(t, "GET", "/run/stream?prompt=%20", "").refused(t, 400, "invalid_request", "prompt")
	s.send(t, "GET", "/run/stream?prompt=x&session_id=..%2Fx", "").refused(t, 400, "invalid_request", "claude.session_id")
	s.send(t, "GET", "/run/stream?prompt=x&workdir=relative", "").refused(t, 400, "invalid_request", "workdir")
	s.send(t, "GET", "/run/stream?prompt=x%ff", "").refused(t, 400, "invalid_request", "prompt")
	s.send(t, "GET", "/jobs?limit=-1", "").refused(t, 400, "invalid_request", "limit")
	s.send(t, "GET", "/jobs?limit=1000000000000", "").refused(t, 400, "invalid_request", "limit")
	s.send(t, "GET", "/jobs?status=done", "").refused(t, 400, "invalid_request", "status")
	s.send(t, "GET", "/jobs?since=yesterday", "").refused(t, 400, "invalid_request", "since")
	s.send(t, "GET", "/jobs?cursor=nonsense", "").refused(t, 400, "invalid_request", "cursor")
	// A body of unknown length that goes on and on is cut off.
	a := s.sendBody(t, http.MethodPost, "/run", io.MultiReader(strings.NewReader(`{"prompt":"`), io.LimitReader(endless{}, 20<<20)), "Content-Type: application/json")
	a.refused(t, 413, "body_too_large", "")
}

// endless reads as one letter for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
