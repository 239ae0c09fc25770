package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

func clientFields() []field { return fieldsOf(reflect.TypeFor[Client](), "", nil) }

// NoEffect tells of each setting that was set and changes nothing, why.
func (c *Config) NoEffect() []string {
	var out []string
	for _, f := range schema() {
		o, set := c.origins[f.env]
		if !set || f.noEffect == "" || f.value != "" && f.text(c) == f.value {
			continue
		}
		out = append(out, fmt.Sprintf("%s (%s) has no effect: %s", f.env, o, f.noEffect))
	}
	return append(out, slices.Compact(c.imageTag())...)
}

// imageTag tells where an image's tag is set in vain.
func (c *Config) imageTag() []string {
	switch {
	case c.Agent.ImageTag == "" || c.AgentImage() == c.Agent.Image+":"+c.Agent.ImageTag:
		return nil
	case c.Agent.Image == "":
		return []string{"STROMBOLI_AGENT_IMAGE_TAG has no effect: STROMBOLI_AGENT_IMAGE is not set, and the agent image that this version makes has one tag"}
	case strings.HasSuffix(c.Agent.Image, ":"+c.Agent.ImageTag):
		return nil
	}
	return []string{"STROMBOLI_AGENT_IMAGE_TAG has no effect: STROMBOLI_AGENT_IMAGE names a tag or a digest itself"}
}

// AgentImage is the image of runs that name none, tag included; empty: the one
// that this version makes.
func (c *Config) AgentImage() string {
	image := c.Agent.Image
	name := image[strings.LastIndexByte(image, '/')+1:]
	if image == "" || c.Agent.ImageTag == "" || strings.ContainsAny(name, ":@") {
		return image
	}
	return image + ":" + c.Agent.ImageTag
}
