package claude

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// The CLI drops settings of a wrong shape, all of them, and an MCP server of a
// wrong shape without a word (measured). What it documents is therefore
// checked here; names that it may learn later are left to it.

type shape func(field string, raw json.RawMessage) error

func isString(field string, raw json.RawMessage) error {
	var v string
	if raw[0] != '"' || json.Unmarshal(raw, &v) != nil {
		return stromboli.FieldError(field, "must be a string")
	}
	return nil
}

func isStrings(field string, raw json.RawMessage) error {
	var v []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &v) != nil {
		return stromboli.FieldError(field, "must be a list of strings")
	}
	for _, e := range v {
		if isString(field, e) != nil {
			return stromboli.FieldError(field, "must be a list of strings")
		}
	}
	return nil
}

func isStringMap(field string, raw json.RawMessage) error {
	o, err := objectOf(field, raw)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if err := isString(member(field, name), o[name]); err != nil {
			return err
		}
	}
	return nil
}

func isObject(field string, raw json.RawMessage) error {
	_, err := objectOf(field, raw)
	return err
}

func objectOf(field string, raw []byte) (map[string]json.RawMessage, error) {
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		if json.Valid(raw) {
			return nil, stromboli.FieldError(field, "must be a JSON object")
		}
		return nil, stromboli.FieldError(field, "is not valid JSON: %v", err)
	}
	if o == nil {
		return nil, stromboli.FieldError(field, "must be a JSON object")
	}
	return o, nil
}

// member extends a field by a name of the caller's, which may be anything.
func member(field, name string) string {
	if name == "" || len(name) > 64 || hasControl(name) {
		name = quote(name)
	}
	return field + "." + name
}

// fits checks those members of an object that have a shape.
func fits(field string, o map[string]json.RawMessage, shapes map[string]shape) error {
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		if raw, ok := o[name]; ok && string(raw) != "null" {
			if err := shapes[name](field+"."+name, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSettings judges settings. Those that would name another endpoint or
// other credentials have no effect in a sandbox, so they are refused.
func checkSettings(field string, b []byte) error {
	o, err := objectOf(field, b)
	if err != nil {
		return err
	}
	for _, name := range []string{
		"apiKeyHelper", "proxyAuthHelper", "awsAuthRefresh", "awsCredentialExport", "gcpAuthRefresh", "otelHeadersHelper", "forceLoginMethod", "forceLoginOrgUUID",
	} {
		if _, ok := o[name]; ok {
			return stromboli.FieldError(field+"."+name, "has no effect here: the model's endpoint and credentials are the server's")
		}
	}
	return fits(field, o, map[string]shape{
		"env": func(f string, raw json.RawMessage) error {
			if err := isStringMap(f, raw); err != nil {
				return err
			}
			var env map[string]string
			if err := json.Unmarshal(raw, &env); err != nil {
				return stromboli.FieldError(f, "must be an object whose values are strings")
			}
			return ValidateEnv(f, env)
		},
		"permissions": func(f string, raw json.RawMessage) error {
			p, err := objectOf(f, raw)
			if err != nil {
				return err
			}
			return fits(f, p, map[string]shape{
				"allow": isStrings, "deny": isStrings, "ask": isStrings, "additionalDirectories": isStrings, "defaultMode": isString,
			})
		},
		"hooks": isObject, "model": isString, "outputStyle": isString, "enabledPlugins": isObject, "statusLine": isObject,
	})
}

// checkMCP judges a configuration of MCP servers.
func checkMCP(field string, b []byte) error {
	o, err := objectOf(field, b)
	if err != nil {
		return err
	}
	raw, ok := o["mcpServers"]
	if !ok {
		return stromboli.FieldError(field, `has no "mcpServers"`)
	}
	servers, err := objectOf(field+".mcpServers", raw)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		f := member(field+".mcpServers", name)
		server, err := objectOf(f, servers[name])
		if err != nil {
			return err
		}
		if err := fits(f, server, map[string]shape{
			"type": isString, "command": isString, "args": isStrings, "env": isStringMap, "url": isString, "headers": isStringMap,
		}); err != nil {
			return err
		}
		if server["command"] == nil && server["url"] == nil {
			return stromboli.FieldError(f, `needs a "command" or a "url"`)
		}
	}
	return nil
}

// validAgents checks the agents that a caller defines.
func validAgents(o stromboli.ClaudeOptions) error {
	const field = "claude.agents"
	if len(o.Agents) > 0 {
		if len(o.Agents) > maxArgument {
			return stromboli.FieldError(field, "is longer than %d bytes", maxArgument)
		}
		agents, err := objectOf(field, o.Agents)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(agents)) {
			if err := validAgent(member(field, name), name, agents[name]); err != nil {
				return err
			}
		}
	}
	return validName("claude.agent", o.Agent)
}

func validAgent(field, name string, raw json.RawMessage) error {
	if err := validName(field, name); err != nil {
		return err
	}
	agent, err := objectOf(field, raw)
	if err != nil {
		return err
	}
	for _, must := range []string{"description", "prompt"} {
		var s string
		if json.Unmarshal(agent[must], &s) != nil || strings.TrimSpace(s) == "" {
			return stromboli.FieldError(field+"."+must, "is required and must be a string that is not blank")
		}
	}
	return fits(field, agent, map[string]shape{"tools": isStrings, "disallowedTools": isStrings, "model": isString, "permissionMode": isString})
}

// validName checks a name of an agent, which may have a plugin's before it.
func validName(field, name string) error {
	if err := noDash(field, name); err != nil {
		return err
	}
	if len(name) > maxModel || hasControl(name) {
		return stromboli.FieldError(field, "%s is no name: at most %d bytes without control characters", quote(name), maxModel)
	}
	return nil
}
