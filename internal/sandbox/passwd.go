package sandbox

import (
	"fmt"
	"strconv"
	"strings"
)

// agentName is the agent's name in a sandbox whose image has none for its uid.
const agentName = "agent"

// passwdFor returns the image's /etc/passwd with the agent's uid in it: a line
// of its own, or, when the uid has a name already, that line with its home
// rewritten. Lines that can't be parsed are kept as they are.
func passwdFor(image string, uid, gid int, home string) string {
	lines := splitLines(image)
	want := strconv.Itoa(uid)
	found := false
	for i, line := range lines {
		f := strings.Split(line, ":")
		if len(f) != 7 || f[2] != want {
			continue
		}
		f[5] = home
		lines[i] = strings.Join(f, ":")
		found = true
	}
	if !found {
		name := freeName(lines)
		lines = append(lines, fmt.Sprintf("%s:x:%d:%d:Stromboli agent:%s:/bin/bash", name, uid, gid, home))
	}
	return strings.Join(lines, "\n") + "\n"
}

// groupFor returns the image's /etc/group with the agent's gid in it.
func groupFor(image string, gid int) string {
	lines := splitLines(image)
	want := strconv.Itoa(gid)
	for _, line := range lines {
		if f := strings.Split(line, ":"); len(f) == 4 && f[2] == want {
			return strings.Join(lines, "\n") + "\n"
		}
	}
	lines = append(lines, fmt.Sprintf("%s:x:%d:", freeName(lines), gid))
	return strings.Join(lines, "\n") + "\n"
}

func splitLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func freeName(lines []string) string {
	taken := make(map[string]bool, len(lines))
	for _, line := range lines {
		name, _, _ := strings.Cut(line, ":")
		taken[name] = true
	}
	name := agentName
	for i := 2; taken[name]; i++ {
		name = agentName + strconv.Itoa(i)
	}
	return name
}
