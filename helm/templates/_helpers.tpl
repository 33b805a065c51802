{{/* Prefix of all names. At most 40 characters, so that the longest suffix, and what controllers append, fit in 63. */}}
{{- define "alignez.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Release.Name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if not (contains $name .Release.Name) -}}
{{- $full = printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{- if gt (len $full) 40 -}}
{{- /* The hash keeps two long releases of one namespace apart. */ -}}
{{- printf "%s-%s" ($full | trunc 31 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end }}

{{- define "alignez.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "alignez.labels" -}}
{{ include "alignez.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: alignez
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Of pods: without versions, so that a new chart with the old image restarts nothing that holds a model. */}}
{{- define "alignez.podLabels" -}}
{{ include "alignez.selectorLabels" . }}
app.kubernetes.io/part-of: alignez
{{- end }}

{{/* name, namespace and labels of an object; `suffix` is the component unless it says otherwise. */}}
{{- define "alignez.metadata" -}}
name: {{ include "alignez.fullname" .root }}-{{ default .component .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "alignez.labels" . | nindent 2 }}
{{- end }}

{{/* An image of ours, by its name below `images`. */}}
{{- define "alignez.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- $repository := $image.repository -}}
{{- with .root.Values.images.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end -}}
{{- include "alignez.imageReference" (dict "repository" $repository "tag" (default .root.Chart.AppVersion $image.tag) "digest" $image.digest) -}}
{{- end }}

{{/* A digest names the image's content and wins; a tag may be moved. */}}
{{- define "alignez.imageReference" -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository .tag }}
{{- end -}}
{{- end }}

{{/* What every pod of ours has in common. */}}
{{- define "alignez.podBasics" -}}
serviceAccountName: {{ default (include "alignez.fullname" .root) .serviceAccount }}
automountServiceAccountToken: false
# Kubernetes would set <SERVICE>_PORT=tcp://…, and ours read settings with such names.
enableServiceLinks: false
securityContext:
  {{- include "alignez.podSecurity" (default 10001 .uid) | nindent 2 }}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "alignez.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
# A cache of many gigabytes is not walked through at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "alignez.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where a pod runs; `values` is the component's. */}}
{{- define "alignez.placement" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    # Of this revision only, so that a rollout is spread by itself.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "alignez.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* GPUs of one pod: vLLM's tensor parallelism, one for torch on CUDA, none on a CPU. */}}
{{- define "alignez.gpus" -}}
{{- if eq .engine "vllm" -}}
{{ .tensorParallel }}
{{- else if hasPrefix "cuda" .device -}}
1
{{- else -}}
0
{{- end -}}
{{- end }}

{{/* Requests and limits with the GPUs, which Kubernetes wants among the limits. */}}
{{- define "alignez.resources" -}}
{{- $gpus := include "alignez.gpus" . | int -}}
{{- $resources := deepCopy .resources -}}
{{- if $gpus -}}
{{- $_ := set $resources "limits" (merge (dict .gpuResourceName $gpus) (default dict $resources.limits)) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{- define "alignez.brokerPort" -}}
{{- $default := ternary 5672 6379 (eq .Values.broker.kind "rabbitmq") -}}
{{- if and (eq .Values.broker.mode "external") .Values.broker.external.port -}}
{{ .Values.broker.external.port }}
{{- else -}}
{{ $default }}
{{- end -}}
{{- end }}

{{/* Caches below /tmp, for the root file system is read-only; models in the cache volume. */}}
{{- define "alignez.modelEnv" -}}
- name: HF_HOME
  value: /cache/huggingface
- name: ALIGNEZ_MODEL_CACHE
  value: /cache/alignez
- name: HOME
  value: /tmp
- name: XDG_CACHE_HOME
  value: /tmp/.cache
- name: VLLM_CACHE_ROOT
  value: /tmp/.cache/vllm
- name: TORCHINDUCTOR_CACHE_DIR
  value: /tmp/.cache/inductor
- name: TRITON_CACHE_DIR
  value: /tmp/.cache/triton
# Nothing of ours leaves the cluster.
- name: VLLM_NO_USAGE_STATS
  value: "1"
- name: HF_HUB_DISABLE_TELEMETRY
  value: "1"
{{- if .Values.model.offline }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- end }}

{{- define "alignez.modelMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{- define "alignez.modelVolumes" -}}
{{- $cache := .root.Values.model.cache -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .values.sharedMemory }}
- name: cache
  {{- if eq $cache.type "pvc" }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-model-cache" (include "alignez.fullname" .root)) $cache.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $cache.size }}
  {{- end }}
{{- end }}

{{/* Grace period of an API pod: delay, drain, the 5 s that the server adds for last bytes (api/server.py), a margin. */}}
{{- define "alignez.apiGrace" -}}
{{- default (add .drainDelaySeconds .drainSeconds 15) (.terminationGracePeriodSeconds | int) -}}
{{- end }}

{{- define "alignez.workerGrace" -}}
{{- default (add .handBackSeconds 30) (.terminationGracePeriodSeconds | int) -}}
{{- end }}

{{/* The role that inference pods run in. */}}
{{- define "alignez.inferenceRole" -}}
{{- ternary "all" "inference" (eq .Values.routing.userPaths "all") -}}
{{- end }}

{{/*
What inference serves; everything else is control's. `api/app.py` has the same list as routers, and a test compares them.
*/}}
{{- define "alignez.inferencePaths" -}}
- {kind: exact, path: /v1/chat/completions}
- {kind: exact, path: /v1/completions}
- {kind: exact, path: /v1/compare}
- {kind: prefix, path: /v1/models}
{{- if eq .Values.routing.userPaths "regex" }}
- {kind: regex, path: "/v1/users/[^/]+/(chat/completions|completions|models(/.+)?)"}
{{- else }}
- {kind: prefix, path: /v1/users}
{{- end }}
{{- end }}

{{/* Label selector of some components' pods. */}}
{{- define "alignez.selectComponents" -}}
matchLabels:
  app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 }}
  app.kubernetes.io/instance: {{ .root.Release.Name }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [{{ join ", " .components }}]}
{{- end }}

{{/* Peers by address; none is any address, which is what a rule without peers means. */}}
{{- define "alignez.cidrs" -}}
{{- if .cidrs }}
{{ .key }}:
  {{- range .cidrs }}
  - ipBlock: {cidr: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}
