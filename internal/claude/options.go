package claude

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// Limits of option values. The kernel takes at most 128 KiB for one argument
// of a program.
const (
	maxArgument = 120 << 10
	maxAlias    = 64
	maxModel    = 256
	maxTools    = 200
	maxTool     = 1024
	maxTurns    = 1_000_000
	maxBudget   = 1_000_000
)

func permissionModes() []string {
	return []string{"acceptEdits", "bypassPermissions", "default", "dontAsk", "plan"}
}

func outputFormats() []string {
	return []string{string(stromboli.OutputText), string(stromboli.OutputJSON), string(stromboli.OutputStreamJSON)}
}

// Validate checks the options that are the CLI's; times are the policy's. An
// error is a stromboli.Error that names the field.
func Validate(o stromboli.ClaudeOptions) error {
	return first(
		func() error { return validSession(o) },
		func() error { return validModel(o.Model) },
		func() error { return validText("claude.system_prompt", o.SystemPrompt) },
		func() error { return validText("claude.append_system_prompt", o.AppendSystemPrompt) },
		func() error { return validTools("claude.allowed_tools", o.AllowedTools) },
		func() error { return validTools("claude.disallowed_tools", o.DisallowedTools) },
		func() error { return validPermissionMode(o.PermissionMode) },
		func() error { return oneOf("claude.output_format", string(o.OutputFormat), outputFormats()) },
		func() error { return validSchema(o.JSONSchema) },
		func() error { return validNumbers(o) },
		func() error { return validFallback(o.FallbackModel) },
		func() error { return validChoices(o) },
		func() error { return validBuiltIn(o.Tools) },
		func() error { return validAgents(o) },
		func() error { return validFiles(o) },
		func() error { return validSize(o) },
	)
}

func first(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func validSession(o stromboli.ClaudeOptions) error {
	const field = "claude.session_id"
	if o.ForkSession && !o.Resume && !o.Continue {
		return stromboli.FieldError("claude.fork_session", "needs resume, with the session_id to fork, or continue")
	}
	if o.Continue { // which ignores the id
		return nil
	}
	if o.SessionID == "" {
		if o.Resume {
			return stromboli.FieldError(field, "is required with resume: name the session to go on with")
		}
		return nil
	}
	if id, alias := SessionName(o.SessionID); id == "" && alias == "" {
		return stromboli.FieldError(field, "%s is neither a UUID nor an alias (1 to %d of A-Z a-z 0-9 . _ -, and not . or ..)", quote(o.SessionID), maxAlias)
	}
	return nil
}

// SessionName tells what a session_id is: a UUID, in canonical form whatever
// case it came in, or an alias, in which case counts. Both are empty where it
// is neither.
func SessionName(s string) (id, alias string) {
	if lower := strings.ToLower(s); IsUUID(lower) {
		return lower, ""
	}
	if s == "" || len(s) > maxAlias || s == "." || s == ".." { // those two no URL can name
		return "", ""
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return "", ""
		}
	}
	return "", s
}

// IsUUID reports whether s is a UUID in canonical form: 8-4-4-4-12 lower-case
// hexadecimal digits.
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		default:
			return false
		}
	}
	return true
}

func validModel(model string) error { return modelName("claude.model", model) }

func modelName(field, model string) error {
	if err := noDash(field, model); err != nil {
		return err
	}
	if len(model) > maxModel {
		return stromboli.FieldError(field, "is longer than %d characters", maxModel)
	}
	for _, r := range model {
		if r <= ' ' || r > '~' {
			return stromboli.FieldError(field, "%s holds a character that no model's name has", quote(model))
		}
	}
	return nil
}

// validText checks a text that becomes an argument.
func validText(field, text string) error {
	if err := noDash(field, text); err != nil {
		return err
	}
	switch {
	case len(text) > maxArgument:
		return stromboli.FieldError(field, "is longer than %d bytes", maxArgument)
	case strings.ContainsRune(text, 0):
		return stromboli.FieldError(field, "holds a NUL character")
	case !utf8.ValidString(text):
		return stromboli.FieldError(field, "is not valid UTF-8")
	}
	return nil
}

func validTools(field string, tools []string) error {
	if len(tools) > maxTools {
		return stromboli.FieldError(field, "has %d entries, at most %d are possible", len(tools), maxTools)
	}
	for i, tool := range tools {
		name := fmt.Sprintf("%s[%d]", field, i)
		if strings.TrimSpace(tool) == "" {
			return stromboli.FieldError(name, "is empty")
		}
		if err := noDash(name, tool); err != nil {
			return err
		}
		if len(tool) > maxTool {
			return stromboli.FieldError(name, "is longer than %d bytes", maxTool)
		}
		if hasControl(tool) {
			return stromboli.FieldError(name, "%s holds a control character", quote(tool))
		}
	}
	return nil
}

func validPermissionMode(mode string) error {
	const field = "claude.permission_mode"
	if mode == "delegate" {
		msg := "delegate is refused by this version of the agent CLI; it takes " + strings.Join(permissionModes(), ", ")
		return &stromboli.Error{
			Code: stromboli.NotSupported, Message: field + ": " + msg,
			Details: []stromboli.Detail{{Field: field, Message: msg}},
		}
	}
	return oneOf(field, mode, permissionModes())
}

func validSchema(schema string) error {
	const field = "claude.json_schema"
	if schema == "" {
		return nil
	}
	if err := validText(field, schema); err != nil {
		return err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(schema), &object); err != nil {
		if json.Valid([]byte(schema)) {
			return stromboli.FieldError(field, "is not a JSON object, but a JSON Schema must be one")
		}
		return stromboli.FieldError(field, "is not valid JSON: %v", err)
	}
	if object == nil {
		return stromboli.FieldError(field, "is not a JSON object, but a JSON Schema must be one")
	}
	return nil
}

func validNumbers(o stromboli.ClaudeOptions) error {
	if n := o.MaxTurns; n != nil && (*n < 0 || *n > maxTurns) {
		return stromboli.FieldError("claude.max_turns", "is %d, it must be between 0 (unlimited) and %d", *n, maxTurns)
	}
	if b := o.MaxBudgetUSD; b != nil && (math.IsNaN(*b) || *b <= 0 || *b > maxBudget) {
		return stromboli.FieldError("claude.max_budget_usd", "is %v, it must be above 0 and at most %d", *b, maxBudget)
	}
	return nil
}

// noDash refuses a value that a command line could take for an option.
func noDash(field, value string) error {
	if strings.HasPrefix(value, "-") {
		return stromboli.FieldError(field, "must not begin with a dash")
	}
	return nil
}

func oneOf(field, value string, choices []string) error {
	if value == "" || slices.Contains(choices, value) {
		return nil
	}
	return stromboli.FieldError(field, "%s is unknown; it is one of %s", quote(value), strings.Join(choices, ", "))
}

func hasControl(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl)
}

// quote shows a caller's value in a message, shortened and on one line.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(s[:limit], ""))
	}
	return fmt.Sprintf("%q", s)
}
