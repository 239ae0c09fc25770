package claude

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Options that are files: paths in the sandbox, or JSON in their place. The
// CLI passes over a missing directory and over settings of a wrong shape
// without a word, so these are found here or, for paths, by whoever can look
// into the sandbox.

const (
	maxFileEntries = 100
	maxPathLength  = 1024
	// MaxConfigFile bounds a settings or MCP file that a path names.
	MaxConfigFile = 1 << 20
)

// Needed is something of the sandbox that an option names, which must be there
// before the agent starts.
type Needed struct {
	Field string
	Path  string
	// Check judges the content of a file; nil: it is a directory.
	Check func(content []byte) error
}

// Needs lists what the options want of the sandbox's files.
func Needs(o stromboli.ClaudeOptions) []Needed {
	var all []Needed
	dirs := func(field string, paths []string) {
		for i, p := range paths {
			all = append(all, Needed{Field: fmt.Sprintf("%s[%d]", field, i), Path: p})
		}
	}
	dirs("claude.add_dirs", o.AddDirs)
	dirs("claude.plugin_dirs", o.PluginDirs)
	if o.Settings != "" && !inline(o.Settings) {
		const field = "claude.settings"
		all = append(all, Needed{field, o.Settings, func(b []byte) error { return checkSettings(field, b) }})
	}
	for i, c := range o.MCPConfigs {
		if !inline(c) {
			field := fmt.Sprintf("claude.mcp_configs[%d]", i)
			all = append(all, Needed{field, c, func(b []byte) error { return checkMCP(field, b) }})
		}
	}
	return all
}

// File is to be written into the sandbox before the agent starts.
type File struct {
	Field   string
	Path    string
	Content []byte
}

// fileEntry is one element of claude.files.
type fileEntry struct {
	Path     string `json:"path"`
	Content  string `json:"content"`
	Encoding string `json:"encoding"`
}

// Files lists the files to be written. The options have passed Validate.
func Files(o stromboli.ClaudeOptions) []File {
	all := make([]File, 0, len(o.Files))
	for i, s := range o.Files {
		if f, err := parseFile(fmt.Sprintf("claude.files[%d]", i), s); err == nil {
			all = append(all, f)
		}
	}
	return all
}

func parseFile(field, s string) (File, error) {
	if !inline(s) {
		msg := `is not a JSON object such as {"path":"/workspace/a.txt","content":"…"}; the form file_id:path is refused by the agent CLI without a claude.ai session`
		return File{}, &stromboli.Error{
			Code: stromboli.NotSupported, Message: field + ": " + msg, Details: []stromboli.Detail{{Field: field, Message: msg}},
		}
	}
	var e fileEntry
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || d.More() {
		return File{}, stromboli.FieldError(field, `is not a JSON object with the strings "path", "content" and, if it is not text, "encoding":"base64"`)
	}
	if err := validPath(field+".path", e.Path); err != nil {
		return File{}, err
	}
	f := File{Field: field, Path: e.Path, Content: []byte(e.Content)}
	switch e.Encoding {
	case "", "text":
	case "base64":
		b, err := base64.StdEncoding.DecodeString(e.Content)
		if err != nil {
			return File{}, stromboli.FieldError(field+".content", "is not base64")
		}
		f.Content = b
	default:
		return File{}, stromboli.FieldError(field+".encoding", "%s is unknown; it is one of text, base64", quote(e.Encoding))
	}
	return f, nil
}

// inline reports whether an option holds JSON rather than a path.
func inline(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "{") }

func validFiles(o stromboli.ClaudeOptions) error {
	if err := validPaths("claude.add_dirs", o.AddDirs); err != nil {
		return err
	}
	if err := validPaths("claude.plugin_dirs", o.PluginDirs); err != nil {
		return err
	}
	if len(o.Files) > maxFileEntries {
		return stromboli.FieldError("claude.files", "has %d entries, at most %d are possible", len(o.Files), maxFileEntries)
	}
	for i, s := range o.Files {
		if _, err := parseFile(fmt.Sprintf("claude.files[%d]", i), s); err != nil {
			return err
		}
	}
	if len(o.MCPConfigs) > maxFileEntries {
		return stromboli.FieldError("claude.mcp_configs", "has %d entries, at most %d are possible", len(o.MCPConfigs), maxFileEntries)
	}
	for i, s := range o.MCPConfigs {
		if err := pathOrJSON(fmt.Sprintf("claude.mcp_configs[%d]", i), s, checkMCP); err != nil {
			return err
		}
	}
	if o.Settings == "" {
		return nil
	}
	return pathOrJSON("claude.settings", o.Settings, checkSettings)
}

func pathOrJSON(field, s string, check func(string, []byte) error) error {
	if !inline(s) {
		return validPath(field, s)
	}
	if err := validText(field, s); err != nil {
		return err
	}
	return check(field, []byte(s))
}

func validPaths(field string, paths []string) error {
	if len(paths) > maxFileEntries {
		return stromboli.FieldError(field, "has %d entries, at most %d are possible", len(paths), maxFileEntries)
	}
	for i, p := range paths {
		if err := validPath(fmt.Sprintf("%s[%d]", field, i), p); err != nil {
			return err
		}
	}
	return nil
}

// validPath checks a path of the sandbox, absolute or below the working
// directory. What is there decides the sandbox.
func validPath(field, p string) error {
	switch {
	case strings.TrimSpace(p) == "":
		return stromboli.FieldError(field, "is empty; it must be a path in the sandbox")
	case len(p) > maxPathLength:
		return stromboli.FieldError(field, "is longer than %d bytes", maxPathLength)
	case hasControl(p):
		return stromboli.FieldError(field, "%s holds a control character", quote(p))
	}
	if err := noDash(field, p); err != nil {
		return err
	}
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return stromboli.FieldError(field, "%s holds \"..\"", quote(p))
		}
	}
	return nil
}

// Resolve makes a path absolute.
func Resolve(workdir, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(workdir, p)
}
