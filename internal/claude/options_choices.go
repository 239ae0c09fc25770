package claude

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// maxArguments bounds the command line as a whole, in bytes; the kernel takes
// about 2 MiB with the environment.
const maxArguments = 1 << 20

func efforts() []string        { return []string{"low", "medium", "high", "xhigh", "max"} }
func settingSources() []string { return []string{"user", "project", "local"} }

// betas are what the CLI passes on; of others it says on standard error that it
// ignores them.
func betas() []string { return []string{"context-1m-2025-08-07"} }

func validFallback(models string) error {
	const field = "claude.fallback_model"
	if models == "" {
		return nil
	}
	for _, m := range strings.Split(models, ",") {
		if m == "" {
			return stromboli.FieldError(field, "%s is not a list of models, separated by commas", quote(models))
		}
		if err := modelName(field, m); err != nil {
			return err
		}
	}
	if len(models) > maxModel {
		return stromboli.FieldError(field, "is longer than %d characters", maxModel)
	}
	return nil
}

// validChoices checks the options that have a closed set of values.
func validChoices(o stromboli.ClaudeOptions) error {
	if err := oneOf("claude.input_format", string(o.InputFormat), []string{string(stromboli.InputText), string(stromboli.InputStreamJSON)}); err != nil {
		return err
	}
	if err := oneOf("claude.effort", o.Effort, efforts()); err != nil {
		return err
	}
	if err := oneOf("claude.prompt_caching_ttl", o.PromptCachingTTL, []string{"5m", "1h"}); err != nil {
		return err
	}
	if err := validSources(o.SettingSources); err != nil {
		return err
	}
	for i, b := range o.Betas {
		if b == "" || !slices.Contains(betas(), b) {
			return stromboli.FieldError(fmt.Sprintf("claude.betas[%d]", i), "%s is not passed on by the agent CLI; it knows only %s", quote(b), strings.Join(betas(), ", "))
		}
	}
	if err := validDebug(o.Debug); err != nil {
		return err
	}
	return validBedrock(o.BedrockServiceTier)
}

func validSources(sources []string) error {
	if len(sources) == 1 && sources[0] == "" {
		return nil
	}
	for i, s := range sources {
		field := fmt.Sprintf("claude.setting_sources[%d]", i)
		if s == "" {
			return stromboli.FieldError(field, `is empty; "" stands alone and means no source`)
		}
		if err := oneOf(field, s, settingSources()); err != nil {
			return err
		}
		if slices.Contains(sources[:i], s) {
			return stromboli.FieldError(field, "%s stands there twice", quote(s))
		}
	}
	return nil
}

// validDebug checks a filter of categories such as "api,hooks" or "!file". The
// CLI shows nothing for one that it can't read.
func validDebug(filter string) error {
	const field = "claude.debug"
	if filter == "" {
		return nil
	}
	if len(filter) > maxModel {
		return stromboli.FieldError(field, "is longer than %d characters", maxModel)
	}
	for _, category := range strings.Split(filter, ",") {
		name := strings.TrimPrefix(category, "!")
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:. -") != "" || name[0] == '-' {
			return stromboli.FieldError(field, "%s is not a filter: categories separated by commas, such as init,hooks, or with ! before each that is left out", quote(filter))
		}
	}
	return nil
}

func validBedrock(tier string) error {
	const field = "claude.bedrock_service_tier"
	if err := oneOf(field, tier, []string{"default", "flex", "priority"}); err != nil || tier == "" {
		return err
	}
	const msg = "Bedrock is not supported by this server; see unsupported in /version"
	return &stromboli.Error{
		Code: stromboli.NotSupported, Message: field + ": " + msg, Details: []stromboli.Detail{{Field: field, Message: msg}},
	}
}

// validBuiltIn checks the names of built-in tools.
func validBuiltIn(tools []string) error {
	const field = "claude.tools"
	if len(tools) > maxTools {
		return stromboli.FieldError(field, "has %d entries, at most %d are possible", len(tools), maxTools)
	}
	for i, t := range tools {
		name := fmt.Sprintf("%s[%d]", field, i)
		if t == "" || t == "default" {
			if len(tools) > 1 {
				return stromboli.FieldError(name, `"" (no tool) and "default" (all) stand alone`)
			}
			continue
		}
		if len(t) > maxModel || strings.Trim(t, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			return stromboli.FieldError(name, "%s is no tool's name, such as Bash; patterns belong into allowed_tools and disallowed_tools", quote(t))
		}
	}
	return nil
}

// validSize bounds the command line as a whole.
func validSize(o stromboli.ClaudeOptions) error {
	size := 0
	for _, a := range Args(o, Session{}) {
		if len(a) > maxArgument+64 {
			return stromboli.FieldError("claude", "the option %s is longer than %d bytes", quote(a[:min(len(a), 40)]), maxArgument)
		}
		size += len(a) + 9
	}
	if size > maxArguments {
		return stromboli.FieldError("claude", "the options are %d bytes long as a whole, at most %d are possible", size, maxArguments)
	}
	return nil
}

// Advice are warnings about options that a run takes but can't make use of.
func Advice(o stromboli.ClaudeOptions) []stromboli.Warning {
	if !o.AllowDangerouslySkipPermissions || o.DangerouslySkipPermissions || o.PermissionMode == "bypassPermissions" {
		return nil
	}
	return []stromboli.Warning{{
		Code: WarnOptionUnused,
		Message: "claude.allow_dangerously_skip_permissions only lets a client turn to bypassPermissions later, and a run's mode doesn't change; " +
			"claude.dangerously_skip_permissions turns it on",
	}}
}
