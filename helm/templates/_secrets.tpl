{{/*
Secrets of a component, as a list of variable, secret and key. The URL of an embedded server is not among them: it is
composed of a password, in "alignez.embeddedEnv".

The migration alone has the owner's URL. All processes connect as `alignez_app`, which row-level security binds.
*/}}
{{- define "alignez.secretReferences" -}}
{{- $v := .root.Values -}}
{{- if eq $v.database.mode "external" }}
{{- $source := ternary $v.database.owner $v.database (eq .component "migrate") }}
- {variable: ALIGNEZ_DATABASE_URL, secret: {{ $source.existingSecret | quote }}, key: {{ $source.urlKey | quote }}}
{{- end }}
{{- if and (eq $v.broker.mode "external") (include "alignez.talksToBroker" .) }}
- {variable: ALIGNEZ_BROKER_URL, secret: {{ $v.broker.existingSecret | quote }}, key: {{ $v.broker.urlKey | quote }}}
{{- end }}
{{- if and (eq .component "worker") $v.judge.url $v.judge.existingSecret }}
- {variable: ALIGNEZ_WORKER_JUDGE_KEY, secret: {{ $v.judge.existingSecret | quote }}, key: {{ $v.judge.key | quote }}}
{{- end }}
{{- with $v.model.huggingFaceToken }}
{{- if and .existingSecret (has $.component (list "inference" "worker")) }}
- {variable: HF_TOKEN, secret: {{ .existingSecret | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" for components that send or take messages. */}}
{{- define "alignez.talksToBroker" -}}
{{- if or (has .component (list "control" "worker" "relay")) (and (eq .component "inference") (eq (include "alignez.inferenceRole" .root) "all")) -}}
true
{{- end -}}
{{- end }}

{{/* The variables by which a component gets its secrets, or where their files are. */}}
{{- define "alignez.secretEnv" -}}
{{- $references := include "alignez.secretReferences" . | fromYamlArray }}
{{- include "alignez.embeddedEnv" . }}
{{- if .root.Values.secrets.asFiles }}
- name: ALIGNEZ_SECRETS_DIR
  value: {{ include "alignez.secretsDir" . }}
{{- range $references }}
{{- if eq .variable "HF_TOKEN" }}
# huggingface_hub's name for it.
- name: HF_TOKEN_PATH
  value: {{ include "alignez.secretsDir" . }}/hf_token
{{- end }}
{{- end }}
{{- else }}
{{- range $references }}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{/* URLs of embedded servers, each after the password that is part of it. */}}
{{- define "alignez.embeddedEnv" -}}
{{- $v := .root.Values -}}
{{- $fullname := include "alignez.fullname" .root -}}
{{- if eq $v.database.mode "embedded" }}
{{- $owner := eq .component "migrate" }}
{{- $source := ternary $v.database.owner $v.database $owner }}
- name: DATABASE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $source.existingSecret }}
      key: {{ $source.passwordKey }}
- name: ALIGNEZ_DATABASE_URL
  value: postgresql+psycopg://{{ ternary "alignez" "alignez_app" $owner }}:$(DATABASE_PASSWORD)@{{ $fullname }}-postgres:5432/alignez
{{- end }}
{{- if and (eq $v.broker.mode "embedded") (include "alignez.talksToBroker" .) }}
{{- $rabbitmq := eq $v.broker.kind "rabbitmq" }}
- name: BROKER_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $v.broker.existingSecret }}
      key: {{ $v.broker.passwordKey }}
{{- if $rabbitmq }}
# KEDA asks the management API with these.
- name: BROKER_USERNAME
  value: alignez
{{- end }}
- name: ALIGNEZ_BROKER_URL
  {{- if $rabbitmq }}
  value: amqp://$(BROKER_USERNAME):$(BROKER_PASSWORD)@{{ $fullname }}-rabbitmq:5672//
  {{- else }}
  value: redis://:$(BROKER_PASSWORD)@{{ $fullname }}-redis:6379/0
  {{- end }}
{{- end }}
{{- end }}

{{- define "alignez.secretsDir" -}}
/etc/alignez/secrets
{{- end }}

{{/* Mount and volume of the files; nothing with secrets by variable. */}}
{{- define "alignez.secretMounts" -}}
{{- if .root.Values.secrets.asFiles }}
- {name: secrets, mountPath: {{ include "alignez.secretsDir" . }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "alignez.secretVolumes" -}}
{{- if .root.Values.secrets.asFiles }}
# The keys that this pod needs, each by name, and no other key of these secrets.
- name: secrets
  projected:
    # Root's, readable by the pod's group.
    defaultMode: 0440
    sources:
      {{- range include "alignez.secretReferences" . | fromYamlArray }}
      - secret:
          name: {{ .secret }}
          items:
            - {key: {{ .key | quote }}, path: {{ lower .variable }}}
      {{- end }}
{{- end }}
{{- end }}
