package claude

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

const (
	maxBlocks = 100
	maxTitle  = 1024
)

// ValidateInput checks what is said to the agent and the run's own environment.
// An error is a stromboli.Error that names the field.
func ValidateInput(spec stromboli.RunSpec) error {
	if err := ValidateEnv("env", spec.Env); err != nil {
		return err
	}
	if err := ValidateSecretsEnv("podman.secrets_env", spec.Podman.SecretsEnv, spec.Env); err != nil {
		return err
	}
	if err := validBlocks("content", spec.Content); err != nil {
		return err
	}
	if spec.Claude.InputFormat == stromboli.InputStreamJSON {
		if _, err := promptMessage(spec.Prompt); err != nil {
			return err
		}
	}
	return nil
}

// contentOf is the message's content: the prompt alone, or the blocks of the
// spec and then the prompt.
func contentOf(spec stromboli.RunSpec) any {
	blocks := slices.Clone(spec.Content)
	if spec.Claude.InputFormat == stromboli.InputStreamJSON {
		own, _ := promptMessage(spec.Prompt)
		blocks = append(blocks, own...)
	} else if len(blocks) > 0 {
		blocks = append(blocks, stromboli.ContentBlock{Type: "text", Text: spec.Prompt})
	}
	if len(blocks) == 0 {
		return spec.Prompt
	}
	return blocks
}

// promptMessage reads a prompt in the CLI's own form:
// {"type":"user","message":{"role":"user","content":…}}, one of them.
func promptMessage(prompt string) ([]stromboli.ContentBlock, error) {
	wrong := func(why string) error {
		return stromboli.FieldError("prompt", `%s; with input_format stream-json it must be one line `+
			`{"type":"user","message":{"role":"user","content":"…"}} whose content is a string or a list of text, image and document blocks`, why)
	}
	var m struct {
		Type    string `json:"type"`
		Message struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"message"`
	}
	d := json.NewDecoder(strings.NewReader(prompt))
	if err := d.Decode(&m); err != nil {
		return nil, wrong("is not such a message")
	}
	if d.More() {
		return nil, wrong("holds more than one message")
	}
	if m.Type != "user" || m.Message.Role != "user" {
		return nil, wrong("is not a user's message")
	}
	var text string
	if json.Unmarshal(m.Message.Content, &text) == nil {
		if strings.TrimSpace(text) == "" {
			return nil, wrong("has no content")
		}
		return []stromboli.ContentBlock{{Type: "text", Text: text}}, nil
	}
	var blocks []stromboli.ContentBlock
	s := json.NewDecoder(bytes.NewReader(m.Message.Content))
	s.DisallowUnknownFields()
	if err := s.Decode(&blocks); err != nil || len(blocks) == 0 {
		return nil, wrong("has content of another form")
	}
	return blocks, validBlocks("prompt", blocks)
}

func validBlocks(field string, blocks []stromboli.ContentBlock) error {
	if len(blocks) > maxBlocks {
		return stromboli.FieldError(field, "has %d blocks, at most %d are possible", len(blocks), maxBlocks)
	}
	for i, b := range blocks {
		if err := validBlock(fmt.Sprintf("%s[%d]", field, i), b); err != nil {
			return err
		}
	}
	return nil
}

func validBlock(field string, b stromboli.ContentBlock) error {
	switch b.Type {
	case "text":
		switch {
		case strings.TrimSpace(b.Text) == "":
			return stromboli.FieldError(field+".text", "is required and must not be blank")
		case b.Source != nil || b.Title != "" || b.Context != "":
			return stromboli.FieldError(field, "a text block has a text and nothing else")
		}
		return nil
	case "image", "document":
	case "":
		return stromboli.FieldError(field+".type", "is required; it is one of text, image, document")
	default:
		return stromboli.FieldError(field+".type", "%s is unknown; it is one of text, image, document", quote(b.Type))
	}
	if b.Text != "" {
		return stromboli.FieldError(field+".text", "belongs to text blocks only")
	}
	if b.Type == "image" && (b.Title != "" || b.Context != "") {
		return stromboli.FieldError(field, "title and context belong to documents only")
	}
	if len(b.Title) > maxTitle {
		return stromboli.FieldError(field+".title", "is longer than %d bytes", maxTitle)
	}
	if b.Source == nil {
		return stromboli.FieldError(field+".source", "is required")
	}
	return validSource(field+".source", b.Type, *b.Source)
}

// magic is how the files of a type begin. The CLI replaces an image that it
// can't read by a note to the model, of which the caller would learn nothing.
func magic(mediaType, data string) bool {
	switch mediaType {
	case "image/png":
		return strings.HasPrefix(data, "\x89PNG\r\n\x1a\n")
	case "image/jpeg":
		return strings.HasPrefix(data, "\xff\xd8\xff")
	case "image/gif":
		return strings.HasPrefix(data, "GIF87a") || strings.HasPrefix(data, "GIF89a")
	case "image/webp":
		return len(data) >= 12 && data[:4] == "RIFF" && data[8:12] == "WEBP"
	case "application/pdf":
		return strings.HasPrefix(data, "%PDF-")
	}
	return false
}

func validSource(field, kind string, s stromboli.ContentSource) error {
	switch {
	case s.Type == "text" && kind == "document":
		if s.MediaType != "text/plain" {
			return stromboli.FieldError(field+".media_type", "%s is not possible with text; it must be text/plain", quote(s.MediaType))
		}
		if strings.TrimSpace(s.Data) == "" {
			return stromboli.FieldError(field+".data", "is required and must not be blank")
		}
		return nil
	case s.Type != "base64" && kind == "document":
		return stromboli.FieldError(field+".type", "%s is not supported; it is one of base64, text", quote(s.Type))
	case s.Type != "base64":
		return stromboli.FieldError(field+".type", "%s is not supported; it must be base64", quote(s.Type))
	}
	types := []string{"image/png", "image/jpeg", "image/gif", "image/webp"}
	if kind == "document" {
		types = []string{"application/pdf"}
	}
	if !slices.Contains(types, s.MediaType) {
		return stromboli.FieldError(field+".media_type", "%s is not possible; it is one of %s", quote(s.MediaType), strings.Join(types, ", "))
	}
	b, err := base64.StdEncoding.DecodeString(s.Data)
	if err != nil || len(b) == 0 {
		return stromboli.FieldError(field+".data", "is not base64 (standard alphabet, padded, without line breaks)")
	}
	if !magic(s.MediaType, string(b[:min(len(b), 16)])) {
		return stromboli.FieldError(field+".data", "does not begin as %s does", s.MediaType)
	}
	return nil
}
