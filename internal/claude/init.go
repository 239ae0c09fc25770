package claude

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Warnings about what the CLI passed over in silence.
const (
	// WarnOptionUnused: an option was taken and has no effect.
	WarnOptionUnused = "option_unused"
	// WarnMCPFailed: an MCP server of the request did not start.
	WarnMCPFailed = "mcp_failed"
)

// maxListed bounds what a warning takes over from the CLI's words.
const maxListed = 10

// wished is what was asked of the CLI and can be compared with its init line.
type wished struct {
	tools   []string
	agent   string
	plugins []string
	seen    bool
}

func wishes(o stromboli.ClaudeOptions) wished {
	w := wished{agent: o.Agent, plugins: o.PluginDirs}
	if len(o.Tools) > 0 && o.Tools[0] != "" && o.Tools[0] != "default" {
		w.tools = o.Tools
	}
	return w
}

// compare looks once for what the CLI didn't take: it passes over a tool, an
// agent or a plugin that it doesn't know (measured).
func (t *Turn) compare(o object) []stromboli.Event {
	if t.wished.seen {
		return nil
	}
	t.wished.seen = true
	var lost []string
	tools := get[[]string](o, "tools")
	for _, name := range t.wished.tools {
		// The agents' tool has two names.
		if name == "Agent" && slices.Contains(tools, "Task") {
			continue
		}
		if !slices.Contains(tools, name) {
			lost = append(lost, "the tool "+quote(name))
		}
	}
	if a := t.wished.agent; a != "" && !slices.Contains(get[[]string](o, "agents"), a) {
		lost = append(lost, "the agent "+quote(a))
	}
	workdir := get[string](o, "cwd")
	plugins := get[[]struct {
		Path string `json:"path"`
	}](o, "plugins")
	for _, dir := range t.wished.plugins {
		found := false
		for _, p := range plugins {
			found = found || Resolve(workdir, dir) == Resolve(workdir, p.Path)
		}
		if !found {
			lost = append(lost, "the plugin in "+quote(dir))
		}
	}
	var events []stromboli.Event
	if len(lost) > 0 {
		events = append(events, t.warn(WarnOptionUnused, "the agent CLI doesn't know, or doesn't offer now: "+list(lost))...)
	}
	var failed []string
	for _, s := range get[[]struct {
		Name   string `json:"name"`
		Status string `json:"status"`
	}](o, "mcp_servers") {
		if s.Status == "failed" {
			failed = append(failed, quote(s.Name))
		}
	}
	if len(failed) > 0 {
		events = append(events, t.warn(WarnMCPFailed, "MCP servers that did not start: "+list(failed))...)
	}
	return events
}

func list(all []string) string {
	if len(all) > maxListed {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxListed], ", "), len(all)-maxListed)
	}
	return strings.Join(all, ", ")
}
