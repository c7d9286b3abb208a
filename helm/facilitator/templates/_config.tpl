{{/* One value in TOML. Numbers of YAML come as floats: whole ones are written as integers, whatever their size. */}}
{{- define "facilitator.toml" -}}
{{- if kindIs "string" . -}}{{ toJson . }}
{{- else if kindIs "bool" . -}}{{ . }}
{{- else if kindIs "slice" . -}}[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "facilitator.toml" $item }}{{ end }}]
{{- else if kindIs "map" . -}}{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ $key }} = {{ include "facilitator.toml" (index $ $key) }}{{ end -}} }
{{- else if eq (floor .) (float64 .) -}}{{ printf "%.0f" (float64 .) }}
{{- else -}}{{ printf "%v" (float64 .) }}
{{- end -}}
{{- end -}}

{{- define "facilitator.secretPath" -}}
file:/etc/facilitator/secrets/{{ .secretName }}/{{ .secretKey }}
{{- end -}}

{{- define "facilitator.source" -}}
{{- if .url -}}{{ .url }}{{- else -}}{{ include "facilitator.secretPath" . }}{{- end -}}
{{- end -}}

{{- define "facilitator.relayer" -}}
{{- if .service -}}
{{ .service }}{{ if .tokenSecretName }}&token={{ include "facilitator.secretPath" (dict "secretName" .tokenSecretName "secretKey" .tokenSecretKey) }}{{ end }}
{{- else if .passwordSecretKey -}}
keystore:/etc/facilitator/secrets/{{ .secretName }}/{{ .secretKey }}?password={{ include "facilitator.secretPath" (dict "secretName" .secretName "secretKey" .passwordSecretKey) }}
{{- else -}}
{{ include "facilitator.secretPath" . }}
{{- end -}}
{{- end -}}

{{/* The configuration of one role: dict root, keys (whether it signs), console. */}}
{{- define "facilitator.config" -}}
{{- $root := .root -}}
{{- $tables := deepCopy $root.Values.config -}}
{{- $_ := set $tables "server" (merge (dict "listen" "0.0.0.0:4022") $tables.server) -}}
{{- $_ := set $tables "database" (merge (dict "url" (include "facilitator.secretPath" $root.Values.database)) (default dict $tables.database)) -}}
{{- $_ := set $tables "metrics" (dict "listen" "0.0.0.0:9464") -}}
{{- if and $root.Values.console.enabled .console -}}
{{- $_ := set $tables "console" (merge (dict "listen" "0.0.0.0:4023" "export_directory" "/exports") (default dict $tables.console)) -}}
{{- end -}}
{{- range $table, $settings := $tables }}
[{{ $table }}]
{{- range $key, $value := $settings }}
{{ $key }} = {{ include "facilitator.toml" $value }}
{{- end }}
{{ end }}
{{- $keys := .keys -}}
{{- range $root.Values.networks }}
[[networks]]
id = {{ toJson .id }}
{{- $urls := list }}
{{- range .rpcUrls }}{{ $urls = append $urls (include "facilitator.source" .) }}{{ end }}
rpc_urls = {{ include "facilitator.toml" $urls }}
{{- $relayers := list }}
{{- if $keys }}{{ range .relayers }}{{ $relayers = append $relayers (include "facilitator.relayer" .) }}{{ end }}{{ end }}
relayers = {{ include "facilitator.toml" $relayers }}
{{- with .wsUrl }}
ws_url = {{ toJson (include "facilitator.source" .) }}
{{- end }}
{{- range $key, $value := omit (default dict .settings) "assets" }}
{{ $key }} = {{ include "facilitator.toml" $value }}
{{- end }}
{{- range (default dict .settings).assets }}
[[networks.assets]]
{{- range $key, $value := . }}
{{ $key }} = {{ include "facilitator.toml" $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end -}}

{{/* The sources of a role's projected secrets volume, each secret once with the keys that are used: dict root, keys, networks. */}}
{{- define "facilitator.secretSources" -}}
{{- $items := dict -}}
{{- $wanted := list .root.Values.database -}}
{{- if .networks -}}
{{- range .root.Values.networks -}}
{{- range .rpcUrls }}{{ if .secretName }}{{ $wanted = append $wanted . }}{{ end }}{{ end -}}
{{- with .wsUrl }}{{ if .secretName }}{{ $wanted = append $wanted . }}{{ end }}{{ end -}}
{{- if $.keys -}}
{{- range .relayers -}}
{{- if .secretName }}{{ $wanted = append $wanted . }}{{ end -}}
{{- if .tokenSecretName }}{{ $wanted = append $wanted (dict "secretName" .tokenSecretName "secretKey" .tokenSecretKey) }}{{ end -}}
{{- if .passwordSecretKey }}{{ $wanted = append $wanted (dict "secretName" .secretName "secretKey" .passwordSecretKey) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $wanted -}}
{{- $_ := set $items .secretName (append (default list (get $items .secretName)) .secretKey | uniq) -}}
{{- end -}}
{{- range $name, $keys := $items }}
- secret:
    name: {{ $name }}
    items:
    {{- range $keys }}
      - {key: {{ . | quote }}, path: {{ printf "%s/%s" $name . | quote }}}
    {{- end }}
{{- end }}
{{- end -}}
