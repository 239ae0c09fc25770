package modelstub

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

const demoFile = "hello-from-stromboli.md"

// defaultStep answers a prompt that has no directive.
func defaultStep(c *conversation) Step {
	prompt, _ := c.prompt()
	return Step{Text: "This is the scripted model. You said: " + clip(prompt, 2000)}
}

// demoStep shows the agent at work: a command, a file, an answer that tells
// what the tools found. It uses only tools that the request offers.
func demoStep(c *conversation) Step {
	prompt, at := c.prompt()
	result, _ := c.lastToolResult(at)
	switch turns := c.turnsAfter(at); {
	case turns == 0 && c.hasTool("Bash"):
		return Step{
			Text: "I am the built-in scripted model, not Claude, but the agent, its tools and the sandbox are real. Let me look around first.",
			ToolUse: toolUse("Bash", map[string]string{
				"command":     "uname -a; id; pwd; ls -la",
				"description": "Show where the agent runs",
			}),
		}
	case turns == 1 && c.hasTool("Write"):
		dir := c.workdir()
		if dir == "" {
			break
		}
		return Step{
			Text: "That works: the command ran in the sandbox. Now I write a file into the working directory.",
			ToolUse: toolUse("Write", map[string]string{
				"file_path": path.Join(dir, demoFile),
				"content":   demoText(prompt, result),
			}),
		}
	case turns >= 2:
		return Step{Text: fmt.Sprintf("Done. I ran a command and wrote %s; the last tool answered: %q.\n\n"+
			"Your prompt was: %s\n\nWith your own Claude credentials the same agent answers it for real.",
			demoFile, clip(firstLine(result), 200), clip(prompt, 500))}
	}
	return Step{Text: fmt.Sprintf("This is the scripted model. Your prompt was: %s", clip(prompt, 500))}
}

func demoText(prompt, found string) string {
	return fmt.Sprintf("# Hello from Stromboli\n\nWritten by the agent's Write tool, inside its sandbox.\n\n"+
		"The prompt was:\n\n> %s\n\nWhat the Bash tool found there:\n\n```\n%s\n```\n",
		strings.ReplaceAll(clip(prompt, 500), "\n", "\n> "), clip(found, 4000))
}

func toolUse(name string, input map[string]string) *ToolUse {
	data, err := json.Marshal(input)
	if err != nil {
		return nil // a map of strings always marshals
	}
	return &ToolUse{Name: name, Input: data}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// clip shortens s to n bytes at a character's border.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
