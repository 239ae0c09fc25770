package image

import (
	"strings"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// Bounds of what an image says of itself.
const (
	maxTools       = 100
	maxDescription = 4096
)

// describe tells of an image what its labels and the look into it say.
func describe(i engine.Image, facts stromboli.ImageFacts, known bool) stromboli.Image {
	out := stromboli.Image{
		ID: i.ID, Bytes: i.Bytes, Created: i.Created, Labels: i.Labels, Tools: []string{},
		CLI: facts.CLI || yes(i.Labels[stromboli.LabelCLI]), Description: i.Labels[stromboli.LabelDescription],
	}
	if d := out.Description; len(d) > maxDescription {
		out.Description = strings.ToValidUTF8(d[:maxDescription], "") + "…"
	}
	for tool := range strings.SplitSeq(i.Labels[stromboli.LabelTools], ",") {
		if tool = strings.TrimSpace(tool); tool != "" && utf8.ValidString(tool) && len(out.Tools) < maxTools {
			out.Tools = append(out.Tools, tool)
		}
	}
	out.Rank, out.RankReason = rank(i.Labels, facts, known)
	return out
}

func yes(label string) bool { return strings.EqualFold(strings.TrimSpace(label), "true") }

// rank: that no agent can run in an image is a fact, which no label changes.
func rank(labels map[string]string, facts stromboli.ImageFacts, known bool) (stromboli.ImageRank, string) {
	switch {
	case known && facts.Unusable != "":
		return stromboli.RankIncompatible, "No agent can run in it: it " + facts.Unusable + "."
	case yes(labels[stromboli.LabelCompatible]):
		return stromboli.RankDeclared, "Its label " + stromboli.LabelCompatible + " declares it made for agents."
	case yes(labels[stromboli.LabelCLI]):
		return stromboli.RankHasCLI, "Its label " + stromboli.LabelCLI + " declares that it brings the agent CLI."
	case !known:
		return stromboli.RankIncompatible, "It has not been looked into yet: ask again."
	case facts.Libc == "":
		return stromboli.RankRuns, "The agent CLI runs in it, with a C library that the server mounts: it has none."
	}
	return stromboli.RankRuns, "The agent CLI runs in it (" + facts.Libc + ")."
}
