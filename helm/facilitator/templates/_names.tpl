{{/* Names of at most 63 characters: a long one keeps its beginning and gets a hash of the whole. The longest suffix has 11. */}}
{{- define "facilitator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- if gt (len $full) 51 -}}
{{- printf "%s-%s" ($full | trunc 42 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{- define "facilitator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "facilitator.labels" -}}
{{ include "facilitator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: x402
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "facilitator.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
{{- end -}}
{{- end -}}

{{/* Runbook links of rules and dashboards, which name docs/operations.md. */}}
{{- define "facilitator.linked" -}}
{{- if .root.Values.monitoring.runbooksUrl -}}
{{- .text | replace "docs/operations.md" (printf "%s/operations.md" (trimSuffix "/" .root.Values.monitoring.runbooksUrl)) -}}
{{- else -}}
{{- .text -}}
{{- end -}}
{{- end -}}

{{/* Which roles run, and which of them hold keys: {role: {keys: bool, values: …}} */}}
{{- define "facilitator.roles" -}}
api:
  keys: {{ not .Values.roles.relayer.enabled }}
{{- if .Values.roles.relayer.enabled }}
relayer:
  keys: true
{{- end }}
{{- end -}}

{{/* SIGTERM to exit: drain, callers, delivery of the last answers, connections, and five seconds to spare. */}}
{{- define "facilitator.graceSeconds" -}}
{{- with .Values.config.server -}}
{{- add (ceil .drain_delay_s) (ceil .stop_grace_s) (ceil .delivery_timeout_s) 7 5 -}}
{{- end -}}
{{- end -}}
