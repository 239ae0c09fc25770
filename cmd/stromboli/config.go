package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/tomblancdev/stromboli/internal/config"
)

// source is where this process's configuration comes from: the environment,
// and the file that --config names or that lies in one of its places.
func (p process) source() (config.Source, error) {
	src := config.Source{Environ: p.environ, File: p.configFile}
	if src.File != "" {
		return src, nil
	}
	var err error
	src.File, err = config.Find(p.environ)
	return src, err
}

// config reads the configuration.
func (p process) config() (*config.Config, error) {
	src, err := p.source()
	if err != nil {
		return nil, err
	}
	return config.Read(src)
}

type configCommand struct {
	Print configPrint `cmd:"" help:"Print every setting, with where it comes from; secrets are hidden."`
	Check configCheck `cmd:"" help:"Tell all that is wrong with the configuration. Exit code 0: nothing; 1: something."`
}

type configPrint struct {
	JSON bool `name:"json" help:"Print a JSON array of {variable, key, value, origin, reload}; secrets have hidden: true and no value."`
}

// Help is shown after the flags.
func (configPrint) Help() string {
	return "The output is a configuration file: the settings that hold, each with its origin (default, the variable, or file:line)."
}

// Run prints the configuration.
func (c configPrint) Run(p process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(p.stdout, cfg.Settings())
	}
	return printYAML(p.stdout, cfg.Settings())
}

func printJSON(w io.Writer, settings []config.Setting) error {
	type item struct {
		Variable string `json:"variable"`
		Key      string `json:"key"`
		Value    any    `json:"value,omitempty"`
		Hidden   bool   `json:"hidden,omitempty"`
		Origin   string `json:"origin"`
		Reload   bool   `json:"reload"`
	}
	items := make([]item, 0, len(settings))
	for _, s := range settings {
		items = append(items, item{s.Variable, s.Key, s.Value, s.Secret && s.Set, s.Origin.String(), s.Reload})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(items)
}

// printYAML prints a file that would set what holds, but for the secrets.
func printYAML(w io.Writer, settings []config.Setting) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	sections := map[string]*yaml.Node{}
	for _, s := range settings {
		section, name := "", s.Key
		if i := strings.LastIndexByte(s.Key, '.'); i >= 0 {
			section, name = s.Key[:i], s.Key[i+1:]
		}
		in := root
		if section != "" {
			if sections[section] == nil {
				sections[section] = &yaml.Node{Kind: yaml.MappingNode}
				root.Content = append(root.Content, text(section), sections[section])
			}
			in = sections[section]
		}
		value := &yaml.Node{}
		comment := s.Origin.String()
		switch {
		case s.Secret:
			value = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
			if s.Set {
				comment = "[hidden], " + comment
			}
		default:
			if err := value.Encode(s.Value); err != nil {
				return fmt.Errorf("%s: %w", s.Key, err)
			}
		}
		if value.Kind != yaml.ScalarNode {
			value.Style |= yaml.FlowStyle
		}
		value.LineComment = "# " + comment
		in.Content = append(in.Content, text(name), value)
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("printing the configuration: %w", err)
	}
	return enc.Close()
}

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

type configCheck struct{}

// Help is shown after the flags.
func (configCheck) Help() string {
	return "Reads file, environment and the files that they name as serve would, and starts nothing. Warnings don't change the exit code."
}

// Run examines the configuration.
func (configCheck) Run(ctx context.Context, p process) error {
	cfg, err := p.config()
	if err == nil {
		log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
		for _, note := range cfg.NoEffect() {
			log.WarnContext(ctx, note)
		}
		_, err = newPolicies(cfg, p.environ, log)
	}
	if err != nil {
		_, _ = fmt.Fprintln(p.stderr, err)
		return exitError(1)
	}
	file := cfg.File()
	if file == "" {
		file = "the environment; there is no configuration file"
	}
	_, err = fmt.Fprintf(p.stdout, "nothing is wrong (%s)\n", file)
	return err
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
